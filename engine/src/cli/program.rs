//! What to run, from where, and the exit code.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
#[cfg(feature = "flight")]
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::args::{Args, Command};
use super::bench;
use super::catalog;
use super::demo;
use super::dispatch::{self, Flow};
use super::error::{Failure, Outcome};
use super::history;
use super::interrupt::Interrupts;
use super::script::{self, Splitter};
#[cfg(feature = "flight")]
use super::serve;
use super::session::Session;
#[cfg(feature = "flight")]
use super::session::model_name;
use super::shell;

/// Settings that options of the command line stand for, with the same environment variables.
const SETTINGS_WITH_OPTIONS: &[&str] = &["refrain.model", "refrain.device", "refrain.threads"];

/// Runs the program to its end. It needs a multi-threaded tokio runtime, since the shell waits for keys in place.
pub async fn run(args: Args) -> ExitCode {
    match run_inner(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.tell();
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run_inner(args: &Args) -> Outcome<()> {
    let interrupts = Interrupts::listen();
    let interactive = args.command.is_none() && !args.has_script() && io::stdin().is_terminal();
    let mut session = Session::open(args, interactive, interrupts).await?;
    #[cfg(feature = "flight")]
    connect(&mut session, args).await?;
    let outcome = run_in(&mut session, args, interactive).await;
    session.place.leave().await;
    outcome
}

/// Connects to the server that the command line names, if it names one.
#[cfg(feature = "flight")]
async fn connect(session: &mut Session, args: &Args) -> Outcome<()> {
    let Some(address) = &args.server.connect else { return Ok(()) };
    if args.command.is_some() {
        return Err(Failure::usage("--connect is for statements; subcommands run in this process"));
    }
    let remote = session.interrupts.race(args.server.open(address)).await??;
    session.move_to(Arc::new(remote)).await;
    match &args.model {
        Some(model) if model_name(model).is_some() => {
            Err(Failure::usage("a server has models of its own; name one of them, or make one there by CREATE MODEL"))
        }
        Some(model) => session.set("refrain.model", model).await,
        None => Ok(()),
    }
}

async fn run_in(session: &mut Session, args: &Args, interactive: bool) -> Outcome<()> {
    apply_settings(session, args).await?;
    match &args.command {
        Some(Command::Demo(options)) => return demo::run(session, options.seed).await,
        Some(Command::Bench(options)) => {
            // A script that is asked for may make the model; what is usual in the shell is not to be measured.
            if args.init.is_some() && run_init(session, args).await? == Flow::Quit {
                return Ok(());
            }
            return bench::run(session, options).await;
        }
        #[cfg(feature = "flight")]
        Some(Command::Serve(options)) => {
            return match run_init(session, args).await? {
                Flow::Continue => serve::run(session, options).await,
                Flow::Quit => Ok(()),
            };
        }
        #[cfg(feature = "flight")]
        Some(Command::Password(options)) => return serve::password(session, options),
        None => {}
    }
    if run_init(session, args).await? == Flow::Quit {
        return Ok(());
    }
    session.is_readonly = args.readonly;
    match interactive {
        true => shell::run(session).await,
        false if args.has_script() => run_arguments(session, args).await,
        false => run_pipe(session, args.stops_at_errors()).await,
    }
}

/// Applies `REFRAIN_X` from the environment to every setting `refrain.x`, then options that stand for settings, then `-v`.
async fn apply_settings(session: &Session, args: &Args) -> Outcome<()> {
    for setting in catalog::all_settings(session.db.context()) {
        let is_ours = setting.name.starts_with("refrain.") && !SETTINGS_WITH_OPTIONS.contains(&setting.name.as_str());
        let variable = setting.name.replace('.', "_").to_uppercase();
        if let (true, Ok(value)) = (is_ours, std::env::var(variable)) {
            session.set(&setting.name, &value).await?;
        }
    }
    if let Some(seconds) = args.max_seconds {
        session.set("refrain.max_seconds", &seconds.to_string()).await?;
    }
    if let Some(tokens) = args.max_tokens {
        session.set("refrain.max_tokens", &tokens.to_string()).await?;
    }
    for (name, value) in &args.settings {
        session.set(name, value).await?;
    }
    Ok(())
}

/// Runs the init file, then that of the current folder if the user wants it.
async fn run_init(session: &mut Session, args: &Args) -> Outcome<Flow> {
    for path in init_files(args) {
        let script = dispatch::read(&path)?;
        if session.run_items(script::items(&script), true).await? == Flow::Quit {
            return Ok(Flow::Quit);
        }
    }
    Ok(Flow::Continue)
}

/// Returns the scripts to run first: the one asked for must exist, the others may. Those make models and tables for this process, so
/// they are not run on a server.
fn init_files(args: &Args) -> Vec<PathBuf> {
    let is_usual = !args.no_init && !args.is_connected();
    let found = |path: &PathBuf| is_usual && path.is_file();
    let first = args.init.clone().or_else(|| history::init_file().filter(found));
    let local = args.local_init.then(history::local_init_file).filter(found);
    first.into_iter().chain(local).collect()
}

/// Runs `-c` and `-f`, in this order.
async fn run_arguments(session: &mut Session, args: &Args) -> Outcome<()> {
    let mut items: Vec<_> = args.commands.iter().flat_map(|command| script::items(command)).collect();
    match args.file.as_deref() {
        Some(path) if path == Path::new("-") => {
            if session.run_items(items, args.stops_at_errors()).await? == Flow::Continue {
                run_pipe(session, args.stops_at_errors()).await?;
            }
            return Ok(());
        }
        Some(path) => items.extend(script::items(&dispatch::read(path)?)),
        None => {}
    }
    session.run_items(items, args.stops_at_errors()).await.map(|_| ())
}

/// Runs the script on standard input, each statement as soon as it is there.
async fn run_pipe(session: &mut Session, bail: bool) -> Outcome<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let mut splitter = Splitter::default();
    let mut first_code = None;
    loop {
        let mut line = String::new();
        let read = session.interrupts.race(input.read_line(&mut line)).await?;
        let at_end = read.map_err(|error| Failure::io("cannot read standard input", error))? == 0;
        let items = if at_end { splitter.finish().into_iter().collect() } else { splitter.feed(&line) };
        match session.run_items(items, bail).await {
            Ok(Flow::Quit) => break,
            Ok(Flow::Continue) => {}
            Err(Failure::Told(code)) => _ = first_code.get_or_insert(code),
            Err(error) => return Err(error),
        }
        if at_end {
            break;
        }
    }
    first_code.map_or(Ok(()), |code| Err(Failure::Told(code)))
}
