//! The errors a block request can end with.

use std::fmt;

/// Errors of the NBD protocol ("Error values" of its specification); the numbers are those on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
    Shutdown = 108,
}

impl fmt::Display for Errno {
    /// The name that the system and its manuals give it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Errno::Perm => "EPERM",
            Errno::Io => "EIO",
            Errno::NoMem => "ENOMEM",
            Errno::Inval => "EINVAL",
            Errno::NoSpc => "ENOSPC",
            Errno::Overflow => "EOVERFLOW",
            Errno::NotSup => "ENOTSUP",
            Errno::Shutdown => "ESHUTDOWN",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_name_that_manuals_give_it() {
        let all = [Errno::Perm, Errno::Io, Errno::NoMem, Errno::Inval, Errno::NoSpc, Errno::Overflow, Errno::NotSup];
        assert_eq!(all.map(|it| it.to_string()).join(" "), "EPERM EIO ENOMEM EINVAL ENOSPC EOVERFLOW ENOTSUP");
        assert_eq!(Errno::Shutdown.to_string(), "ESHUTDOWN");
    }
}
