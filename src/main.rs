//! The `backjob` program.

/// Allocations are a fifth of what a job costs with the system's allocator.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    backjob::cli::main()
}
