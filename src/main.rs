//! The `backjob` program.

fn main() {
    println!("backjob {}", env!("CARGO_PKG_VERSION"));
}
