//! The tables of TCP sockets of this host, `/proc/net/tcp` and `/proc/net/tcp6`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Connection, Destination};
use crate::types::Protocol;

/// The state of an open connection, `TCP_ESTABLISHED` of the kernel.
const ESTABLISHED: &str = "01";

/// The open connections of this host. Those that it opened itself are among them: their local port is a port that no
/// session has.
pub(super) fn accepted() -> Vec<Connection> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| File::open(table).ok());
    let lines = tables.flat_map(|table| BufReader::new(table).lines().map_while(Result::ok));
    lines.filter_map(|line| parse(&line)).collect()
}

/// Reads one line: `sl local_address rem_address st …`, where an address is `0100007F:1F90`.
fn parse(line: &str) -> Option<Connection> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
    if state != ESTABLISHED {
        return None;
    }
    let (_, port) = local.split_once(':')?;
    let (client, _) = remote.split_once(':')?;
    Some(Connection {
        protocol: Protocol::Tcp,
        client: address(client)?,
        port: u16::from_str_radix(port, 16).ok()?,
        to: Destination::Here,
    })
}

/// An address is one or four words of 32 bits, each in the byte order of this machine.
fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at * 8..(at + 1) * 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn open_connections_are_read_and_everything_else_is_not() {
        let open =
            "   1: 0100007F:4E20 0500000A:C350 01 00000000:00000000 00:00000000 00000000  0  0 7 1 0 20 4 30 10 -1";
        let read = parse(open).unwrap();
        assert_eq!((read.client, read.port), ("10.0.0.5".parse().unwrap(), 20_000));
        let mapped = "   1: 0000000000000000FFFF00000100007F:4E20 0000000000000000FFFF00000500000A:C350 01 0";
        assert_eq!(parse(mapped), Some(read), "an IPv4 client of a socket of both families");
        let v6 = "   0: 00000000000000000000000001000000:4E21 B80D0120000000000000000001000000:C350 01 0";
        assert_eq!(parse(v6).unwrap().client, "2001:db8::1".parse::<IpAddr>().unwrap());
        for other in [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            "   0: 00000000:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1",
            "   0: 0100007F:4E20 0500000A:C350 06 00000000:00000000 03:00000000 00000000 0 0 0",
            "   0: 0100007F 0500000A:C350 01",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_connection_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = accepted().into_iter().find(|connection| connection.port == port).unwrap();
        assert_eq!(found.client, client.local_addr().unwrap().ip());
    }
}
