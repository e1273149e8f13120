//! The command line, and the only place where `REFRAIN_*` environment variables are named.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Parser, Subcommand};
use refrain_serving::device::DeviceChoice;

use super::bench::BenchArgs;
use super::output::Format;
#[cfg(feature = "flight")]
use super::remote::ServerArgs;
#[cfg(feature = "flight")]
use super::serve::{PasswordArgs, ServeArgs};

/// A SQL engine for tables that a language model has to read.
#[derive(Debug, Parser)]
#[command(name = "refrain", version, about)]
pub struct Args {
    /// What to do instead of opening the shell.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Run this SQL or shell command, then leave; may be repeated
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub(crate) commands: Vec<String>,

    /// Run this script, then leave (`-` is standard input)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Say nothing but errors and lost rows on standard error
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// How results are written
    #[arg(long, value_enum, default_value_t = Format::Table, env = "REFRAIN_FORMAT")]
    pub(crate) format: Format,

    /// Write results to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Stop a script at its first error (this is the default)
    #[arg(long, overrides_with = "no_bail")]
    pub(crate) bail: bool,

    /// Go on after an error; the exit code still tells of the first
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) no_bail: bool,

    /// End with code 4 if a query lost rows to failed calls
    #[arg(long)]
    pub(crate) strict_rows: bool,

    /// Do not ask before statements that are dear (refrain.confirm_above)
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// Refuse statements that change something, once the init files have run
    #[arg(long)]
    pub(crate) readonly: bool,

    /// Seconds after its start within which a query may ask a model (refrain.max_seconds)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_seconds: Option<f64>,

    /// Longest answer of a model, in tokens (refrain.max_tokens)
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<NonZeroU32>,

    /// Default model: a folder, a GGUF file, random:SHAPE, or the name of a model of the session
    #[arg(long, value_name = "PATH_OR_NAME", env = "REFRAIN_MODEL", global = true)]
    pub(crate) model: Option<String>,

    /// Device that serves models: auto, cpu, cuda, cuda:N, cuda:all or cuda:tp
    #[arg(long, value_name = "DEVICE", env = "REFRAIN_DEVICE", global = true)]
    pub(crate) device: Option<DeviceChoice>,

    /// Threads of the CPU device
    #[arg(long, value_name = "N", env = "REFRAIN_THREADS", global = true)]
    pub(crate) threads: Option<std::num::NonZeroUsize>,

    /// Set a session setting before anything runs; may be repeated
    #[arg(short = 'v', long = "set", value_name = "NAME=VALUE", value_parser = setting, global = true)]
    pub(crate) settings: Vec<(String, String)>,

    /// A server to run statements on.
    #[cfg(feature = "flight")]
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Run the script .refrainrc of the current folder too, after the init file
    #[arg(long, env = "REFRAIN_LOCAL_INIT", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new(), global = true)]
    pub(crate) local_init: bool,

    /// Do not run init files
    #[arg(long, conflicts_with = "init", global = true)]
    pub(crate) no_init: bool,

    /// Run this script first, instead of ~/.config/refrain/rc.sql
    #[arg(short, long, value_name = "FILE", env = "REFRAIN_INIT", global = true)]
    pub(crate) init: Option<PathBuf>,
}

impl Args {
    /// Whether there is something to run, after which the program ends.
    pub(crate) fn has_script(&self) -> bool {
        !self.commands.is_empty() || self.file.is_some()
    }

    /// Whether statements run on a server.
    pub(crate) fn is_connected(&self) -> bool {
        #[cfg(feature = "flight")]
        return self.server.connect.is_some();
        #[cfg(not(feature = "flight"))]
        false
    }

    /// Whether a script stops at its first error.
    pub(crate) fn stops_at_errors(&self) -> bool {
        self.bail || !self.no_bail
    }
}

/// What the program can do besides SQL.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask the default model about 240 product reviews, with and without Refrain's optimisations
    Demo(DemoArgs),
    /// Measure queries under several settings: the benchmarks of the project, or one query over a table
    Bench(BenchArgs),
    /// Serve Flight SQL to ADBC, JDBC and ODBC clients
    #[cfg(feature = "flight")]
    Serve(ServeArgs),
    /// Make a line of the server's file of passwords; the password is read from standard input
    #[cfg(feature = "flight")]
    Password(PasswordArgs),
}

/// Options of `refrain demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Seed of the generated table
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// Parses `name=value`.
fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("refrain").chain(line.split_whitespace()))
    }

    #[test]
    fn the_declaration_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_are_read() {
        let args = parse("-c a -c b -v x=1 -v refrain.y=z=2 --format ndjson --no-bail --model m").unwrap();
        assert_eq!(args.commands, ["a", "b"]);
        assert_eq!(args.settings, [("x".to_owned(), "1".to_owned()), ("refrain.y".to_owned(), "z=2".to_owned())]);
        assert_eq!(args.format, Format::Ndjson);
        assert!(!args.stops_at_errors());
        assert!(parse("-c a").unwrap().stops_at_errors());
        assert!(parse("--no-bail --bail").unwrap().stops_at_errors());
        let limited = parse("-y --readonly --max-seconds 1.5 --max-tokens 9 --local-init").unwrap();
        assert!(limited.yes && limited.readonly && limited.local_init);
        assert_eq!((limited.max_seconds, limited.max_tokens.map(NonZeroU32::get)), (Some(1.5), Some(9)));
        let bare = parse("").unwrap();
        assert!(!(bare.yes || bare.readonly || bare.local_init));
    }

    #[test]
    fn wrong_options_end_with_the_usage_code() {
        for wrong in
            ["-v x", "--format xml", "--threads 0", "--nonsense", "--device tpu", "-i a --no-init", "--max-tokens 0"]
        {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn a_server_is_named_with_who_the_user_is() {
        let args = parse("--connect grpc://h:1 --user ada -c a").unwrap();
        assert_eq!((args.server.connect.as_deref(), args.server.user.as_deref()), (Some("grpc://h:1"), Some("ada")));
        assert_eq!(parse("--user ada").unwrap_err().exit_code(), 2);
        let args = parse("--connect grpc+tls://h --tls-cert c.pem --tls-key k.pem").unwrap();
        assert_eq!((args.server.tls_cert, args.server.tls_key), (Some("c.pem".into()), Some("k.pem".into())));
        assert_eq!(parse("--connect grpc+tls://h --tls-cert c.pem").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_demo_takes_the_model_options() {
        let args = parse("demo --seed 7 --device cpu").unwrap();
        assert!(matches!(args.command, Some(Command::Demo(DemoArgs { seed: 7 }))));
        assert_eq!(args.device, Some(DeviceChoice::Cpu));
        assert_eq!(parse("demo --device cuda:1").unwrap().device, Some(DeviceChoice::Cuda(1)));
    }
}
