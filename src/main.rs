//! farshore: parse, run one role or verb, exit status.

fn main() -> std::process::ExitCode {
    farshore::cli::main()
}
