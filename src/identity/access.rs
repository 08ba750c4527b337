//! Who can read a token file. Pure.

use std::fmt;

use super::Accounts;

/// Root, as a user and as a group.
const ROOT: u32 = 0;
/// The permission to read, in the bits of one class.
const READ: u16 = 0o4;

/// What the file system says of a token file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Permissions {
    pub(super) owner: u32,
    pub(super) group: u32,
    /// With an ACL the bits of the group are the ACL's mask.
    pub(super) mode: u32,
    /// Whom the bits of the group stand for. Without an ACL: the file's group.
    pub(super) acl: Option<Vec<Grant>>,
    /// The file is in the directory in which systemd passes this service its credentials.
    pub(super) is_credential: bool,
}

/// An entry of an ACL that the ACL's mask limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    User {
        uid: u32,
        bits: u16,
    },
    /// The file's own group.
    OwningGroup {
        bits: u16,
    },
    Group {
        gid: u32,
        bits: u16,
    },
}

/// The process that reads the file: the service, or a command of its operator.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) accounts: Accounts,
}

/// Whom a file's permissions admit that should not read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stranger {
    /// Every user of the host.
    Everyone,
    /// The group, which may do more than read.
    Writers(u32),
    /// A group that is neither root's nor the service's own.
    Group(u32),
    /// An account in the group of root or of the service.
    Member { gid: u32, name: String },
    /// A user to whom the file's ACL grants access.
    User(u32),
}

/// Checks that only root and the reader's user can read the file. Its owner is checked elsewhere.
///
/// Its group may read it if the group is root's or the reader's own, and no other account is in it as far as the local
/// files tell. Of a credential of systemd the ACL gives the service access, and the bits of the group are the ACL's
/// mask.
pub(super) fn check(file: &Permissions, reader: &Reader) -> Result<(), Stranger> {
    if file.mode & 0o007 != 0 {
        return Err(Stranger::Everyone);
    }
    if file.mode & 0o030 != 0 {
        return Err(Stranger::Writers(file.group));
    }
    // Without the bit, neither the group nor an entry of an ACL gives access.
    if file.mode & 0o040 == 0 || file.is_credential {
        return Ok(());
    }
    let Some(acl) = &file.acl else { return reader.check_group(file.group) };
    acl.iter().filter(|grant| grant.bits() & READ != 0).try_for_each(|grant| match *grant {
        Grant::User { uid, .. } if reader.is_trusted(uid) => Ok(()),
        Grant::User { uid, .. } => Err(Stranger::User(uid)),
        Grant::OwningGroup { .. } => reader.check_group(file.group),
        Grant::Group { gid, .. } => reader.check_group(gid),
    })
}

/// The entries of an ACL that its mask limits, from the attribute `system.posix_acl_access`; `None` if it is not an ACL
/// of the version that Linux has.
///
/// The attribute holds the version, 2, in four bytes, and then eight bytes an entry: tag, bits, id; little-endian.
pub(super) fn parse_acl(attribute: &[u8]) -> Option<Vec<Grant>> {
    let (entries, []) = attribute.strip_prefix(&2_u32.to_le_bytes())?.as_chunks() else { return None };
    let grants = entries.iter().filter_map(|&[tag, tag_high, low, high, id @ ..]: &[u8; 8]| {
        let (bits, id) = (u16::from_le_bytes([low, high]), u32::from_le_bytes(id));
        match u16::from_le_bytes([tag, tag_high]) {
            0x02 => Some(Grant::User { uid: id, bits }),
            0x04 => Some(Grant::OwningGroup { bits }),
            0x08 => Some(Grant::Group { gid: id, bits }),
            // The owner, the mask and the others: the mode has their bits.
            _ => None,
        }
    });
    Some(grants.collect())
}

impl Grant {
    const fn bits(self) -> u16 {
        match self {
            Self::User { bits, .. } | Self::OwningGroup { bits } | Self::Group { bits, .. } => bits,
        }
    }
}

impl Reader {
    /// Root and the reader's user.
    pub(super) const fn is_trusted(&self, uid: u32) -> bool {
        uid == ROOT || uid == self.uid
    }

    fn check_group(&self, gid: u32) -> Result<(), Stranger> {
        if gid != ROOT && gid != self.gid {
            return Err(Stranger::Group(gid));
        }
        let is_stranger = |name: &&str| {
            let uid = self.accounts.accounts().find(|account| account.name == *name).map(|account| account.uid);
            !uid.is_some_and(|uid| self.is_trusted(uid))
        };
        match self.accounts.in_group(gid).find(is_stranger) {
            Some(name) => Err(Stranger::Member { gid, name: name.to_owned() }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everyone => f.write_str("accessible by others"),
            Self::Writers(gid) => write!(f, "more than readable by group {gid}"),
            Self::Group(gid) => write!(f, "readable by group {gid}"),
            Self::Member { gid, name } => write!(f, "readable by user {name} of group {gid}"),
            Self::User(uid) => write!(f, "readable by user {uid}, through its ACL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = 990;
    const STAFF: u32 = 50;

    /// The service runs as `ostler`, alone in its group; carol is in the group of root.
    fn service() -> Reader {
        let passwd = "root:x:0:0::/:/bin/sh\nostler:x:990:990::/:/bin/false\nalice:x:1000:50::/:/bin/sh\n";
        Reader { uid: SERVICE, gid: SERVICE, accounts: Accounts::of(passwd, "root:x:0:root\nostler:x:990:ostler\n") }
    }

    fn file(group: u32, mode: u32) -> Permissions {
        Permissions { owner: 0, group, mode, acl: None, is_credential: false }
    }

    #[test]
    fn the_group_of_root_or_of_the_service_may_read_and_no_more() {
        for (group, mode) in [(0, 0o400), (STAFF, 0o600), (0, 0o440), (0, 0o640), (SERVICE, 0o440), (SERVICE, 0o640)] {
            assert_eq!(check(&file(group, mode), &service()), Ok(()), "{group} {mode:o}");
        }
        assert_eq!(check(&file(STAFF, 0o440), &service()), Err(Stranger::Group(STAFF)));
        for mode in [0o660, 0o420, 0o450, 0o470] {
            assert_eq!(check(&file(0, mode), &service()), Err(Stranger::Writers(0)), "{mode:o}");
        }
        for mode in [0o444, 0o644, 0o401, 0o602, 0o777] {
            assert_eq!(check(&file(0, mode), &service()), Err(Stranger::Everyone), "{mode:o}");
        }
    }

    #[test]
    fn another_account_in_the_group_is_named() {
        let with = |passwd: &str, group: &str| {
            let own = "root:x:0:0::/:/bin/sh\nostler:x:990:990::/:/bin/false\n";
            let reader = Reader { accounts: Accounts::of(&format!("{own}{passwd}"), group), ..service() };
            (check(&file(SERVICE, 0o440), &reader), check(&file(0, 0o440), &reader))
        };
        let member = |gid, name: &str| Err(Stranger::Member { gid, name: name.to_owned() });
        assert_eq!(with("", "ostler:x:990:ostler,alice\n"), (member(SERVICE, "alice"), Ok(())));
        assert_eq!(with("bob:x:1001:990::/:/bin/sh\n", ""), (member(SERVICE, "bob"), Ok(())));
        assert_eq!(with("", "root:x:0:root,carol\n"), (Ok(()), member(0, "carol")));
        assert_eq!(with("toor:x:0:0::/:/bin/sh\n", ""), (Ok(()), Ok(())), "another name of root");
        assert_eq!(with("", ""), (Ok(()), Ok(())), "a group without a line has no members");
    }

    #[test]
    fn a_credential_of_systemd_has_its_acl_in_the_bits_of_the_group() {
        let credential = Permissions { is_credential: true, ..file(STAFF, 0o440) };
        assert_eq!(check(&credential, &service()), Ok(()));
        let open = Permissions { mode: 0o444, ..credential };
        assert_eq!(check(&open, &service()), Err(Stranger::Everyone));
    }

    #[test]
    fn an_acl_admits_root_and_the_service_and_nobody_else() {
        let with =
            |acl: &[Grant], mode| check(&Permissions { acl: Some(acl.to_vec()), ..file(STAFF, mode) }, &service());
        let user = |uid, bits| Grant::User { uid, bits };
        let closed = Grant::OwningGroup { bits: 0 };
        assert_eq!(with(&[user(SERVICE, 4), user(0, 4), closed], 0o440), Ok(()));
        assert_eq!(with(&[user(SERVICE, 4), user(1000, 4), closed], 0o440), Err(Stranger::User(1000)));
        assert_eq!(with(&[user(1000, 4), closed], 0o400), Ok(()), "the mask is empty");
        assert_eq!(with(&[user(1000, 0), closed], 0o440), Ok(()), "the entry is empty");
        assert_eq!(with(&[Grant::OwningGroup { bits: 4 }], 0o440), Err(Stranger::Group(STAFF)));
        assert_eq!(with(&[closed, Grant::Group { gid: 51, bits: 4 }], 0o440), Err(Stranger::Group(51)));
        assert_eq!(with(&[closed, Grant::Group { gid: SERVICE, bits: 4 }], 0o440), Ok(()));
    }

    #[test]
    fn an_acl_is_read_as_linux_stores_it() {
        // user::r--, user:1000:r--, group::---, group:50:rw-, mask::rw-, other::---
        let entries: [(u16, u16, u32); 6] =
            [(1, 4, u32::MAX), (2, 4, 1000), (4, 0, u32::MAX), (8, 6, 50), (16, 6, u32::MAX), (32, 0, u32::MAX)];
        let mut attribute = vec![2, 0, 0, 0];
        for (tag, bits, id) in entries {
            attribute.extend([&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        let grants =
            vec![Grant::User { uid: 1000, bits: 4 }, Grant::OwningGroup { bits: 0 }, Grant::Group { gid: 50, bits: 6 }];
        assert_eq!(parse_acl(&attribute), Some(grants));
        assert_eq!(parse_acl(&attribute[..11]), None);
        assert_eq!(parse_acl(&[1, 0, 0, 0]), None);
        assert_eq!(parse_acl(&[]), None);
    }
}
