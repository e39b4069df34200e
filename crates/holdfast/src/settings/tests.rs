//! Layers of settings and where values come from, keys that are refused, and values that cannot be meant.

#![allow(clippy::unwrap_used, clippy::result_large_err)]
use super::*;

/// A layer that says nothing. Only tests in a [`figment::Jail`] may read the environment: it is the whole process's,
/// and the jails of other tests change it.
fn none() -> Serialized<toml::Table> {
    Serialized::globals(toml::Table::new())
}

#[test]
fn file_then_environment_then_flags_and_the_origin_is_told() {
    figment::Jail::expect_with(|jail| {
        jail.create_file("h.toml", "[device]\nthreads = 3\nslots = 7\n[limits]\npage_size = 5\n")?;
        jail.set_env("HOLDFAST_DEVICE__SLOTS", "9");
        let flags = figment::providers::Toml::string("listen = \"127.0.0.1:9\"");
        let loaded = load(Some(Path::new("h.toml")), environment(), flags).unwrap();
        assert_eq!(loaded.settings.device.threads, 3);
        assert_eq!(loaded.settings.device.slots, 9);
        assert_eq!(loaded.settings.limits.page_size, 5);
        assert_eq!(loaded.settings.listen.port(), 9);
        assert!(loaded.origin("device.threads").ends_with("h.toml"));
        assert_eq!(loaded.origin("device.slots"), "HOLDFAST_DEVICE__SLOTS");
        assert_eq!(loaded.origin("device.kv_bytes"), "built-in");
        Ok(())
    });
}

#[test]
fn models_are_registered_in_the_data_directory_unless_said_otherwise() {
    let toml = "data_dir = \"/data\"";
    assert_eq!(load(None, none(), Toml::string(toml)).unwrap().settings.models_dir(), Path::new("/data/models"));
    let toml = "data_dir = \"/data\"\nmodels_dir = \"/srv\"";
    assert_eq!(load(None, none(), Toml::string(toml)).unwrap().settings.models_dir(), Path::new("/srv"));
}

#[test]
fn packed_weights_lie_in_the_data_directory_unless_said_otherwise() {
    let packings = |toml: &str| load(None, none(), Toml::string(toml)).unwrap().settings.packings();
    let directory = |toml: &str| packings(toml).unwrap().directory;
    assert_eq!(directory("data_dir = \"/data\""), Path::new("/data/packings"));
    assert_eq!(directory("data_dir = \"/data\"\n[device]\npacking_dir = \"/cache\""), Path::new("/cache"));
    assert_eq!(packings("[device]\npacking_bytes = 0"), None);
}

#[test]
fn unknown_keys_are_errors_in_every_layer() {
    figment::Jail::expect_with(|jail| {
        jail.create_file("h.toml", "[device]\nthread = 3\n")?;
        let error = load(Some(Path::new("h.toml")), none(), none()).unwrap_err().to_string();
        assert!(error.contains("thread") && error.contains("INVALID_SETTING"), "{error}");
        jail.set_env("HOLDFAST_LISTN", "x");
        let error = load(None, environment(), none()).unwrap_err().to_string();
        assert!(error.contains("listn"), "{error}");
        Ok(())
    });
}

#[test]
fn values_that_cannot_be_meant_are_refused_by_key() {
    for (toml, key) in [
        ("listen = \"0.0.0.0:50051\"", "listen"),
        ("models = []", "models"),
        ("[device]\nblock_tokens = 17", "device.block_tokens"),
        ("[device]\nslots = 0", "device.slots"),
        ("[limits]\npage_size = 0", "page_size"),
        ("[chip]\nname = \"trn9\"", "trn9"),
        ("[prices]\ntrn2_usd_per_hour = -1.0", "prices.trn2_usd_per_hour"),
        ("[device]\nkind = \"remote\"", "device.address: say where"),
        ("[device]\naddress = \"unix:/x\"", "device.address: is of no use"),
        ("[device]\nkind = \"remote\"\naddress = \"nowhere\"", "write unix:/path or host:port"),
        ("models = [\"a\", \"b\"]\n[device]\nkind = \"remote\"\naddress = \"unix:/x\"", "holds one model"),
        ("[device]\nstep_timeout_s = 0", "device.step_timeout_s"),
    ] {
        let error = load(None, none(), Toml::string(toml)).unwrap_err().to_string();
        assert!(error.contains(key), "{toml}: {error}");
    }
    assert!(load(None, none(), Toml::string("listen = \"0.0.0.0:50051\"\ninsecure = true")).is_ok());
    assert!(matches!(load(Some(Path::new("/nowhere.toml")), none(), none()), Err(SettingsError::File(..))));
}

#[test]
fn the_guide_tells_every_key_with_its_default() {
    let guide = include_str!("../../../../docs/configuration.md");
    let toml::Value::Table(root) = toml::Value::try_from(Settings::default()).unwrap() else { unreachable!() };
    let mut keys = Vec::new();
    for (key, value) in &root {
        match value.as_table() {
            Some(section) => keys.extend(section.iter().map(|(inner, value)| (format!("{key}.{inner}"), value))),
            None => keys.push((key.clone(), value)),
        }
    }
    assert!(keys.len() > 30);
    for (key, value) in keys {
        let row = guide.lines().find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md has no row for {key}"));
        if key != "data_dir" {
            let default = value.to_string().replace('"', "");
            assert!(row.replace('"', "").contains(&default), "{row} does not tell the default {default}");
        }
    }
}

#[test]
fn a_gpu_is_asked_only_for_what_it_holds() {
    let gpu = |more: &str| load(None, none(), Toml::string(&format!("[device]\nkind = \"cuda\"\n{more}")));
    for held in ["", "weights = \"bf16\"", "weights = \"nested\"", "kv_format = \"bf16\""] {
        assert_eq!(gpu(held).unwrap().settings.device.kind, DeviceKind::Cuda);
    }
    for (asked, said) in [
        ("weights = \"f32\"", "device.weights"),
        ("kv_format = \"int8\"", "device.kv_format"),
        ("memory_fraction = 0.0", "device.memory_fraction"),
        ("address = \"unix:/d\"", "device.address"),
    ] {
        let error = gpu(asked).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
