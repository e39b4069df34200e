//! `holdfast models served`: the models of a running runtime, with what they hold of its device.

use std::io::Write;

use holdfast_client::{Client, v1};

use crate::cli::ServedArgs;

/// Lists served models.
///
/// # Errors
/// When the runtime cannot be reached.
pub(super) async fn run(args: ServedArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let client = Client::connect(&args.address).await?;
    let models = client.models().list_models(v1::ListModelsRequest::default()).await?.into_inner().models;
    for model in models {
        let revision = model.revision.clone().unwrap_or_default();
        writeln!(
            out,
            "{}{}\n  {}, {} parameters, context {} tokens, {} B of KV per token\n  on {}, {} of {} KV blocks used, numerics {}\n  \
             weights {}\n  tokenizer {}\n  template {}",
            model.name,
            if model.is_default { " (default)" } else { "" },
            model.architecture,
            model.parameter_count,
            model.context_limit_tokens,
            model.kv_bytes_per_token,
            model.device,
            model.kv_blocks_used,
            model.kv_blocks,
            revision.numerics_class,
            revision.weights_digest,
            revision.tokenizer_digest,
            revision.template_digest,
        )?;
    }
    Ok(())
}
