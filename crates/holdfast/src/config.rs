//! `holdfast config`: every setting in force and where its value came from, as a TOML file that could be used as it is.

use toml::Value;

use crate::settings::Loaded;

/// Prints the settings. Comments name the origin of everything that is not built in.
#[expect(clippy::print_stdout, reason = "this command's output")]
pub(crate) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    let Value::Table(root) = Value::try_from(&loaded.settings)? else {
        anyhow::bail!("settings are not a table");
    };
    for line in lines(loaded, &root) {
        println!("{line}");
    }
    Ok(())
}

fn lines(loaded: &Loaded, root: &toml::Table) -> Vec<String> {
    let (tables, values): (Vec<_>, Vec<_>) = root.iter().partition(|(_, value)| value.is_table());
    let mut out: Vec<String> =
        values.iter().map(|(key, value)| format!("{key} = {value}  # {}", loaded.origin(key))).collect();
    for (section, table) in tables {
        out.push(String::new());
        out.push(format!("[{section}]"));
        for (key, value) in table.as_table().into_iter().flatten() {
            out.push(format!("{key} = {value}  # {}", loaded.origin(&format!("{section}.{key}"))));
        }
    }
    out
}
