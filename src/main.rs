//! The `backjob` program.

fn main() -> std::process::ExitCode {
    backjob::cli::main()
}
