//! The local accounts and groups, as `/etc/passwd` and `/etc/group` list them. What a directory service adds is not
//! known here.

use std::fs;

/// The text of both files.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account<'a> {
    pub name: &'a str,
    pub uid: u32,
    pub gid: u32,
}

/// A line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<'a> {
    pub name: &'a str,
    pub gid: u32,
    /// Accounts that are in the group beside those whose own group it is.
    pub members: Vec<&'a str>,
}

impl Accounts {
    /// Those of this host. A file that cannot be read lists nobody.
    pub fn of_host() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    #[cfg(test)]
    pub(crate) fn of(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    pub fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    }

    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            let members = members.split(',').map(str::trim).filter(|member| !member.is_empty()).collect();
            Some(Group { name, gid: gid.parse().ok()?, members })
        })
    }

    /// The name of a user id.
    pub fn name_of(&self, uid: u32) -> Option<&str> {
        self.accounts().find(|account| account.uid == uid).map(|account| account.name)
    }

    /// The accounts of a group: those whose own group it is, and its members.
    pub fn in_group(&self, gid: u32) -> impl Iterator<Item = &str> {
        let own = self.accounts().filter(move |account| account.gid == gid).map(|account| account.name);
        own.chain(self.groups().filter(move |group| group.gid == gid).flat_map(|group| group.members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_and_groups_are_read_and_comments_are_not() {
        let accounts = Accounts::of(
            "root:x:0:0:root:/root:/bin/sh\n# a:b:c:d\n+::::::\nnobody:x:65534:987::/:/bin/false\n",
            "root:x:0:\n# no line\nostler:x:987:alice, bob\nbad:x:no:\n",
        );
        let listed: Vec<_> = accounts.accounts().collect();
        assert_eq!(listed[1..], [Account { name: "nobody", uid: 65534, gid: 987 }]);
        assert_eq!((accounts.name_of(0), accounts.name_of(1)), (Some("root"), None));
        let groups: Vec<_> = accounts.groups().collect();
        assert_eq!(groups[1..], [Group { name: "ostler", gid: 987, members: vec!["alice", "bob"] }]);
        assert_eq!(accounts.in_group(987).collect::<Vec<_>>(), ["nobody", "alice", "bob"]);
        assert_eq!(accounts.in_group(1).next(), None);
    }
}
