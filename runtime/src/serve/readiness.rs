//! `serve --check`: whether a running server is ready, for the health check of images that have no curl.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// A server that takes longer is not ready.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Maximum length of the line with the status.
const MAX_STATUS_LINE: u64 = 256;

/// Asks the server at `address`, of the form `HOST:PORT`.
///
/// # Errors
/// When there is no server, or it is not ready.
pub(super) fn check(address: &str) -> Result<()> {
    let status = status_line(address)
        .with_context(|| format!("no server answers at {address}; is --listen the same as its?"))?;
    ensure!(status.split(' ').nth(1) == Some("200"), "the server at {address} is not ready: {}", status.trim_end());
    Ok(())
}

/// The first line of the response to the question whether the server is ready.
fn status_line(address: &str) -> io::Result<String> {
    let address = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // In one piece: a server that closes the connection before all has arrived resets it.
    let request = format!("GET /v2/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_STATUS_LINE)).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_server_is_ready_if_it_says_so() {
        for (response, error) in [
            ("HTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some("is not ready: HTTP/1.1 503 Service Unavailable")),
            ("", Some("is not ready: ")),
            ("no HTTP, and 200 at that", Some("is not ready: no HTTP, and 200 at that")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).unwrap();
                stream.write_all(response.as_bytes()).unwrap();
                request
            });
            let found = check(&address).err().map(|error| error.to_string());
            let expected = error.map(|error| format!("the server at {address} {error}"));
            assert_eq!(found, expected);
            assert_eq!(server.join().unwrap(), "GET /v2/health/ready HTTP/1.1\r\n");
        }
    }

    #[test]
    fn nobody_at_the_address_is_an_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = check(&address).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("no server answers at {address}")), "{error:#}");
    }
}
