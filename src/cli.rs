//! The command line: subcommands, their help, and what a bare `kv` means.

use crate::{admin, data, doctor, local, status};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use std::ffi::OsString;

const EXAMPLES: &str = "\
Examples:
  kv                              3 shards of 2 replicas, at http://127.0.0.1:5000
  kv --shards 1                   flags of `kv local` need no subcommand
  kv local --ports auto           the same on ports that are free
  kv put greeting 'hello there'   store a value …
  kv get greeting                 … and read it back, raw
  kv status --watch               who leads what, redrawn each second, and every change
  kv admin handoff --node NODE    pass on what a node leads, before it is mended
  kv doctor                       can this machine run a node, and what cures it if not

Every flag can also be set by the environment variable that its help names. Processes that `kv local` \
starts inherit them, so that `KV_MAX_VALUE_BYTES=4194304 kv local` gives each of them that limit, and `KV_SEGMENT_BYTES=16MiB kv local` \
each node that size of the files of its log.";

const LOCAL_EXAMPLES: &str = "\
Examples:
  kv local                              leaders 5001-5003, followers 6001-6003, HTTP 5000
  kv local --ports auto --data-dir d    every port is free; d/cluster.json names them
  kv local --shards 1 --replicas 1      one node, no copy
  kv local --restart                    a process that dies is started again
  kv local --ack replicated             writes wait for memories, not for disks

Try the failures: `kill -9` a leader while `kv status --watch` shows who takes over, and write on; the process \
ids stand in DIR/cluster.json. The nodes keep their data in DIR/nodes; a start on the same DIR has all of them.";

const REBUILD_EXAMPLES: &str = "\
Examples:
  kv rebuild-map --data-dir kv-data/router --node 127.0.0.1:5001 --node 127.0.0.1:6001

All routers are stopped, all nodes run and look for a controller. If a node was started again since the data of the \
routers were lost, it does not remember how the cluster was made: then say it by --shards, --replicas, --partitions and \
--ack. It refuses where a report that matters is missing, and says whose. Then start the router on DIR with the flags that \
it had; it takes the map over.";

const DATA_EXAMPLES: &str = "\
Examples:
  kv put greeting 'hello there'
  kv put logo - < logo.png
  kv put session abc --ttl 30m
  kv get logo > copy.png
  kv delete greeting

Exit code: 0 done, 1 the key has no value, 2 an error.";

/// A sharded, replicated key-value store: nodes, the router and a whole local cluster in one binary
#[derive(Parser, Debug)]
#[command(name = "kv", version, override_usage = "kv [OPTIONS] [COMMAND]", after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// What is logged to stderr: off, error, warn, info, debug, trace, or per module as in `info,kv_node=debug`
    #[arg(long, global = true, env = "KV_LOG", value_name = "FILTER", default_value = "info")]
    pub(crate) log_level: String,
    /// End when the process with this id is no longer the parent
    #[arg(long, global = true, hide = true, value_name = "PID")]
    pub(crate) supervisor_pid: Option<i32>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// A whole cluster on this machine, a process for each part; what `kv` alone does
    #[command(after_help = LOCAL_EXAMPLES)]
    Local(local::Options),
    /// One node: keeps partitions and serves the binary protocol
    Node(kv_node::NodeOptions),
    /// One router: serves the HTTP API and keeps the cluster map
    Router(kv_router::RouterOptions),
    /// The cluster as a table: who leads and follows what, how far behind, in which trouble
    #[command(after_help = status::EXPLANATION)]
    Status(status::Options),
    /// Change the cluster by hand: pass leadership on, drop a follower, recover with loss
    Admin {
        #[command(subcommand)]
        command: admin::Command,
    },
    /// Write the value of a key to stdout, raw
    #[command(after_help = DATA_EXAMPLES)]
    Get(data::GetOptions),
    /// Set the value of a key
    #[command(after_help = DATA_EXAMPLES)]
    Put(data::PutOptions),
    /// Remove a key
    #[command(after_help = DATA_EXAMPLES)]
    Delete(data::DeleteOptions),
    /// Make the cluster map anew from what the nodes have, after the data of all routers are lost
    #[command(after_help = REBUILD_EXAMPLES)]
    RebuildMap(kv_router::RebuildOptions),
    /// Say whether this machine can run a node, and what cures it if not
    Doctor(doctor::Options),
}

impl Cli {
    /// Reads the command line of this process; ends it with a message where that says nothing that can be done.
    pub(crate) fn parse() -> Self {
        Self::from_arguments(std::env::args_os()).unwrap_or_else(|e| e.exit())
    }

    /// Without a subcommand, the arguments are those of `kv local`.
    fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let parse = |arguments: &[OsString]| Cli::command().try_get_matches_from(arguments);
        let may_be_local = |error: &clap::Error| {
            use ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand, UnknownArgument};
            matches!(error.kind(), DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand | UnknownArgument)
        };
        let matches = parse(&arguments).or_else(|error| {
            if !may_be_local(&error) {
                return Err(error);
            }
            arguments.insert(arguments.len().min(1), "local".into());
            // What `kv local` does not know either was no flag of it: a wrong flag, perhaps of another subcommand.
            parse(&arguments).map_err(|of_local| if may_be_local(&of_local) { error } else { of_local })
        })?;
        Cli::from_arg_matches(&matches)
    }

    /// What the log lines and errors of this process begin with.
    pub(crate) fn process_name(&self) -> String {
        match &self.command {
            Command::Local(_) => local::SUPERVISOR.to_owned(),
            Command::Node(options) => options.id.to_string(),
            Command::Router(options) => options.id.to_string(),
            _ => "kv".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::from_arguments(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_command_is_a_local_cluster() {
        for (line, level) in [
            ("kv", "info"),
            ("kv --log-level debug", "debug"),
            ("kv local --log-level warn", "warn"),
            ("kv --shards 3", "info"),
            ("kv --log-level debug --shards 3", "debug"),
            ("kv --restart --shards 3 --log-level debug", "debug"),
        ] {
            let cli = parse(line).expect(line);
            assert!(matches!(cli.command, Command::Local(_)), "{line}");
            assert_eq!((cli.log_level.as_str(), cli.process_name().as_str()), (level, "supervisor"), "{line}");
        }
        assert!(matches!(parse("kv get a").expect("valid").command, Command::Get(_)));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for (line, told) in [
            ("kv nonsense", "unrecognized subcommand 'nonsense'"),
            ("kv --nonsense", "unexpected argument '--nonsense'"),
            ("kv --shards", "a value is required for '--shards"),
            ("kv --shards x", "invalid value 'x' for '--shards"),
            ("kv local --shards x", "invalid value 'x' for '--shards"),
            ("kv --log-level", "a value is required for '--log-level"),
            ("kv get", "required arguments were not provided"),
            ("kv get a --shards 3", "unexpected argument '--shards'"),
            ("kv --log-level debug get a --shards 3", "unexpected argument '--shards'"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn help_and_version() {
        for (line, shown) in [
            ("kv --help", "Usage: kv [OPTIONS] [COMMAND]"),
            ("kv --version", env!("CARGO_PKG_VERSION")),
            ("kv local --help", "Usage: kv local"),
            ("kv --shards 3 --help", "Usage: kv local"),
        ] {
            let text = parse(line).expect_err(line).to_string();
            assert!(text.contains(shown), "{line}: {text}");
        }
    }
}
