//! Every bound on what a client can grow, with its name and default. An error that hits one names it.

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr;)*) => {
        /// Limits of a runtime. Settings under `[limits]`; `GetRuntime` reports them by name.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Limits {
            /// Every limit as (name, value), for `GetRuntime` and `holdfast config`.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), u64::from(self.$name)),)*]
            }
        }
    };
}

limits! {
    /// Sessions of one tenant.
    sessions_per_tenant: u32 = 100_000;
    /// Items in one request (create, append or turn).
    items_per_request: u32 = 1_024;
    /// Items of one session.
    items_per_session: u32 = 100_000;
    /// Turns of one session.
    turns_per_session: u32 = 100_000;
    /// Bytes of text of one item, all parts together.
    item_bytes: u32 = 1_048_576;
    /// Parts of one item.
    parts_per_item: u32 = 64;
    /// Bytes of a session's instructions.
    instructions_bytes: u32 = 1_048_576;
    /// Tools of one session.
    tools_per_session: u32 = 128;
    /// Bytes of one tool's description and schema together.
    tool_bytes: u32 = 65_536;
    /// Labels of one session.
    labels_per_session: u32 = 64;
    /// Characters of a label's key.
    label_key_chars: u32 = 63;
    /// Characters of a label's value.
    label_value_chars: u32 = 512;
    /// Characters of a request id.
    request_id_chars: u32 = 128;
    /// Stop strings of one turn.
    stop_strings: u32 = 16;
    /// Bytes of one stop string.
    stop_string_bytes: u32 = 256;
    /// Entries of a logit bias.
    logit_bias_entries: u32 = 1_024;
    /// Alternatives reported per token.
    top_logprobs: u32 = 20;
    /// Bytes of a constraint: a schema, an expression, a grammar, or all choices together.
    constraint_bytes: u32 = 65_536;
    /// Strings of a choice.
    constraint_choices: u32 = 1_024;
    /// Turns that wait in one session.
    queued_turns_per_session: u32 = 16;
    /// Turns that wait or run over all sessions.
    turns_in_progress: u32 = 4_096;
    /// Tokens sampled by one turn when no layer of sampling settings says.
    default_max_output_tokens: u32 = 512;
    /// Tool calls of one turn.
    calls_per_turn: u32 = 128;
    /// Bytes of one request message.
    request_bytes: u32 = 4_194_304;
    /// Bytes of one reply message; pages are cut to it.
    reply_bytes: u32 = 4_194_304;
    /// Elements of one page.
    page_size: u32 = 1_000;
    /// Streams open at once over all clients.
    open_streams: u32 = 8_192;
    /// Events sent ahead of a slow reader of one stream.
    stream_buffer_events: u32 = 64;
}
