//! farshore: parse, run one role or verb, exit code.

fn main() {}
