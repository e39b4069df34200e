//! Scenario `overhead`.

use clap::Args;

use super::{Play, Stage};
use crate::options::{AllArguments, Common};
use crate::report::Outcome;

/// Not written yet
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    common: Common,
}

impl Play for Arguments {
    const NAME: &'static str = "overhead";

    fn among_all(all: &AllArguments) -> Self {
        Self { common: all.common.clone() }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    async fn play(&self, _stage: &mut Stage<'_>) -> anyhow::Result<Outcome> {
        anyhow::bail!("not written yet")
    }
}

/// A runtime on a device that answers at once
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArguments {}

/// Serves until SIGTERM.
pub(crate) async fn serve(_arguments: &ServeArguments) -> anyhow::Result<()> {
    anyhow::bail!("not written yet")
}
