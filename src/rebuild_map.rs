//! `kv rebuild-map`: the last resort after every controller has lost its data.

use crate::output;
use kv_router::{RebuildOptions, rebuild_map};
use std::process::ExitCode;

pub(crate) async fn run(options: RebuildOptions) -> anyhow::Result<ExitCode> {
    for line in rebuild_map(&options).await? {
        output::line(line);
    }
    Ok(ExitCode::SUCCESS)
}
