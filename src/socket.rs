//! Opens the sockets that the agent listens on, alike for the API (TCP) and for the mesh (UDP).
//!
//! `[::]` stands for every address of the host, of IPv6 and of IPv4. The kernel means only IPv6 under the sysctl
//! `net.ipv6.bindv6only`, and knows no such address without IPv6; so each socket says what it wants, and `0.0.0.0`
//! takes its place on a host without IPv6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

/// Connections that wait in the kernel until they are accepted, at most; the kernel has a limit of its own
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 1024;

/// A non-blocking TCP listener. `key` is the key of the configuration that names the address, for the log.
///
/// # Errors
/// The address is in use, is not one of this host, or is not permitted.
pub fn tcp(key: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let open = |address| {
        let socket = open(address, SocketType::STREAM)?;
        // An agent that is started again can listen although connections of the last one are not forgotten yet.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    Ok(TcpListener::from(with_fallback(key, address, open)?))
}

/// A non-blocking UDP socket. `key` is the key of the configuration that names the address, for the log.
///
/// # Errors
/// The address is in use, is not one of this host, or is not permitted.
pub fn udp(key: &str, address: SocketAddr) -> io::Result<UdpSocket> {
    let open = |address| {
        let socket = open(address, SocketType::DGRAM)?;
        bind(&socket, &address)?;
        Ok(socket)
    };
    Ok(UdpSocket::from(with_fallback(key, address, open)?))
}

fn open(address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if is_every_ipv6(address) {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    Ok(socket)
}

/// Opens the socket, on `0.0.0.0` if the address is `[::]` and the host has no IPv6.
fn with_fallback<T>(key: &str, address: SocketAddr, open: impl Fn(SocketAddr) -> Result<T, Errno>) -> io::Result<T> {
    let error = match open(address) {
        Ok(socket) => return Ok(socket),
        Err(error) => error,
    };
    if !is_every_ipv6(address) || !has_no_ipv6(error) {
        return Err(error.into());
    }
    let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let socket = open(instead)?;
    tracing::warn!(key, %address, %instead, "this host has no IPv6: listening on IPv4 only");
    Ok(socket)
}

fn is_every_ipv6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

/// What the kernel answers where IPv6 is not compiled in, is switched off (`ipv6.disable=1`), or is kept from this
/// process (`RestrictAddressFamilies=` of systemd).
const fn has_no_ipv6(error: Errno) -> bool {
    matches!(error, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "[::]:7480";

    /// The address that is opened in the end where IPv6 fails with this error.
    fn opened(address: &str, ipv6: Errno) -> Result<String, i32> {
        let open = |address: SocketAddr| if address.is_ipv6() { Err(ipv6) } else { Ok(address.to_string()) };
        with_fallback("cluster.listen", address.parse().unwrap(), open).map_err(|e| e.raw_os_error().unwrap())
    }

    #[test]
    fn without_ipv6_every_address_is_every_ipv4_address() {
        for error in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(opened(ANY, error), Ok("0.0.0.0:7480".to_owned()));
        }
    }

    #[test]
    fn another_error_and_another_address_are_errors() {
        assert_eq!(opened(ANY, Errno::ADDRINUSE), Err(Errno::ADDRINUSE.raw_os_error()));
        assert_eq!(opened("[::1]:7480", Errno::AFNOSUPPORT), Err(Errno::AFNOSUPPORT.raw_os_error()));
        assert_eq!(opened("192.0.2.7:7480", Errno::AFNOSUPPORT), Ok("192.0.2.7:7480".to_owned()));
    }

    #[test]
    fn an_address_in_use_stays_an_error() {
        let taken = tcp("http.listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        let again = tcp("http.listen", taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        let taken = udp("cluster.listen", "127.0.0.1:0".parse().unwrap()).unwrap();
        let again = udp("cluster.listen", taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
