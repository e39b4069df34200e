//! Command-line flags as the strongest layer of settings.

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

use crate::cli::SettingsArgs;

/// The flags that were given; absent ones leave the layers below as they are.
#[derive(Debug)]
pub(crate) struct Flags<'a>(pub(crate) &'a SettingsArgs);

impl Provider for Flags<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("command-line flag")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let args = self.0;
        let mut dict = Dict::new();
        if let Some(listen) = &args.listen {
            dict.insert("listen".to_owned(), Value::from(listen.clone()));
        }
        if let Some(path) = &args.data_dir {
            dict.insert("data_dir".to_owned(), Value::from(path.display().to_string()));
        }
        if !args.models.is_empty() {
            dict.insert("models".to_owned(), Value::from(args.models.clone()));
        }
        if args.insecure {
            dict.insert("insecure".to_owned(), Value::from(true));
        }
        for pair in &args.set {
            let (key, text) = pair.split_once('=').ok_or_else(|| {
                Error::from(format!("--set {pair}: write KEY=VALUE, for example --set device.threads=2"))
            })?;
            insert(&mut dict, key.trim(), text.trim())?;
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// Sets a dotted key. The value is read as TOML; what TOML cannot read is a plain string.
#[expect(clippy::result_large_err, reason = "figment's Provider returns this error unboxed")]
fn insert(dict: &mut Dict, key: &str, text: &str) -> Result<(), Error> {
    let value = text.parse::<toml::Value>().unwrap_or_else(|_| toml::Value::String(text.to_owned()));
    let value = Value::serialize(value)?;
    let mut parts: Vec<&str> = key.split('.').collect();
    let Some(last) = parts.pop().filter(|part| !part.is_empty()) else {
        return Err(Error::from("--set: the key is empty".to_owned()));
    };
    let mut inner = dict;
    for part in parts {
        let entry = inner.entry(part.to_owned()).or_insert_with(|| Value::from(Dict::new()));
        inner = match entry {
            Value::Dict(_, dict) => dict,
            _ => return Err(Error::from(format!("--set {key}: {part} is a value, not a section"))),
        };
    }
    inner.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::settings;

    fn load(set: &[&str]) -> Result<settings::Loaded, settings::SettingsError> {
        let args = SettingsArgs { set: set.iter().map(|text| (*text).to_owned()).collect(), ..SettingsArgs::default() };
        settings::load(None, figment::Figment::new(), Flags(&args))
    }

    #[test]
    fn set_reaches_every_setting_and_tells_where_it_came_from() {
        let loaded = load(&["device.threads=2", "telemetry.log=debug", "limits.page_size = 7"]).unwrap();
        assert_eq!(loaded.settings.device.threads, 2);
        assert_eq!(loaded.settings.telemetry.log, "debug");
        assert_eq!(loaded.settings.limits.page_size, 7);
        assert_eq!(loaded.origin("device.threads"), "command-line flag");
    }

    #[test]
    fn set_refuses_what_it_cannot_place() {
        for (wrong, said) in [
            ("device.threads", "KEY=VALUE"),
            ("device.thread=2", "thread"),
            ("device.threads=many", "threads"),
            ("=3", "empty"),
        ] {
            let error = load(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}
