//! The `weft` program; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    weft_cli::main()
}
