//! The program `refrain`: parses the command line, makes the runtime, and leaves the rest to [`refrain::cli`].

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = refrain::cli::Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(refrain::cli::run(args));
    // A thread may still wait for a line on standard input; the program does not wait for it.
    runtime.shutdown_background();
    code
}
