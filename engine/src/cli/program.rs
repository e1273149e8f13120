//! What to run, from where, and the exit code.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

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
    let has_script = !args.commands.is_empty() || args.file.is_some();
    let interactive = args.command.is_none() && !has_script && io::stdin().is_terminal();
    let mut session = Session::open(args, interactive, interrupts).await?;
    apply_settings(&session, args).await?;
    match &args.command {
        Some(Command::Demo(options)) => return demo::run(&mut session, options.seed).await,
        Some(Command::Bench(options)) => {
            // A script that is asked for may make the model; what is usual in the shell is not to be measured.
            if args.init.is_some() && run_init(&mut session, args).await? == Flow::Quit {
                return Ok(());
            }
            return bench::run(&mut session, options).await;
        }
        #[cfg(feature = "flight")]
        Some(Command::Serve(options)) => {
            return match run_init(&mut session, args).await? {
                Flow::Continue => serve::run(&mut session, options).await,
                Flow::Quit => Ok(()),
            };
        }
        #[cfg(feature = "flight")]
        Some(Command::Password(options)) => return serve::password(&mut session, options),
        None => {}
    }
    if run_init(&mut session, args).await? == Flow::Quit {
        return Ok(());
    }
    if interactive {
        return shell::run(&mut session).await;
    }
    if has_script { run_arguments(&mut session, args).await } else { run_pipe(&mut session, args.stops_at_errors()).await }
}

/// Applies `REFRAIN_X` from the environment to every setting `refrain.x`, then `-v`.
async fn apply_settings(session: &Session, args: &Args) -> Outcome<()> {
    for setting in catalog::all_settings(session.db.context()) {
        let is_ours = setting.name.starts_with("refrain.") && !SETTINGS_WITH_OPTIONS.contains(&setting.name.as_str());
        let variable = setting.name.replace('.', "_").to_uppercase();
        if let (true, Ok(value)) = (is_ours, std::env::var(variable)) {
            session.set(&setting.name, &value).await?;
        }
    }
    for (name, value) in &args.settings {
        session.set(name, value).await?;
    }
    Ok(())
}

/// Runs the init file: the one asked for must exist, the usual one may.
async fn run_init(session: &mut Session, args: &Args) -> Outcome<Flow> {
    let script = match &args.init {
        Some(path) => dispatch::read(path)?,
        None if args.no_init => return Ok(Flow::Continue),
        None => match history::init_file().filter(|path| path.is_file()) {
            Some(path) => dispatch::read(&path)?,
            None => return Ok(Flow::Continue),
        },
    };
    session.run_items(script::items(&script), true).await
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
