//! Who is at the other end of a local socket, as the kernel says, and whether a role obeys it.

/// Somebody who asks a role something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The user who asks; `None` when the kernel cannot tell any more.
    pub user: Option<u32>,
    /// The user as whom the role runs.
    pub role: u32,
}

const ROOT: u32 = 0;

impl Asker {
    /// Whether it may change something: the role's own user and root may, whoever else reaches the socket may look.
    #[must_use]
    pub fn is_obeyed(self) -> bool {
        self.user.is_some_and(|user| user == self.role || user == ROOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_are_obeyed() {
        for (user, role, obeyed) in [
            (Some(990), 990, true),
            (Some(0), 990, true),
            (Some(0), 0, true),
            (Some(991), 990, false),
            (Some(990), 0, false),
            (None, 990, false),
            (None, 0, false),
        ] {
            assert_eq!(Asker { user, role }.is_obeyed(), obeyed, "user {user:?}, role {role}");
        }
    }
}
