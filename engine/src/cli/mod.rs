//! The command line: the interactive shell, scripts, and the demonstration.
//!
//! [`run`] is the whole program but for the runtime: it reads the parsed [`Args`], opens one session, and gives it statements
//! and shell commands from the command line, a file, a pipe or the terminal.
//!
//! | part | what it is |
//! |---|---|
//! | [`args`] | options and environment variables |
//! | [`program`] | what to run, from where, and the exit code |
//! | [`session`] | one session of the engine with the user's choices of output |
//! | [`place`], [`local`], `remote` | where statements run: here, or on a server |
//! | [`execute`] | one statement from text to rows, interruptible |
//! | [`commands`], [`dispatch`], [`catalog`] | shell commands: grammar, effect, and the listings among them |
//! | [`confirm`] | the question before what is dear |
//! | [`mod@edit`], [`pager`], [`child`] | the user's editor and pager, and how programs are started |
//! | [`mod@copy`], [`kept`] | results in files of this machine; the last result, kept |
//! | [`shell`], [`editor`], [`complete`], [`history`] | the interactive loop and its line editor |
//! | [`script`] | scripts as statements and commands |
//! | [`output`] | formats, and the place results go to |
//! | [`progress`], [`closing`], [`numbers`] | what is said about a query on standard error |
//! | [`interrupt`] | Ctrl-C |
//! | [`demo`], [`mod@bench`] | `refrain demo`, `refrain bench` |
//! | `serve` | `refrain serve`, `refrain password`; feature `flight` |

mod args;
mod bench;
mod catalog;
mod child;
mod closing;
mod commands;
mod complete;
mod confirm;
mod copy;
mod demo;
mod dispatch;
mod edit;
mod editor;
mod error;
mod execute;
mod history;
mod interrupt;
mod kept;
mod local;
mod numbers;
mod output;
mod pager;
mod place;
mod program;
mod progress;
#[cfg(feature = "flight")]
mod remote;
mod script;
#[cfg(feature = "flight")]
mod serve;
mod session;
mod shell;

pub use args::Args;
pub use program::run;
