//! Where a server is, as the user writes it: `grpc://host:port` or `grpc+tls://user@host:port`.

use std::fmt;
use std::str::FromStr;

use crate::cli::error::Failure;

/// The port of servers whose address names none.
const PORT: u16 = 31337;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Whether the connection is encrypted.
    pub(crate) has_tls: bool,
    /// The user, if one is named.
    pub(crate) user: Option<String>,
    /// Host and port.
    pub(crate) authority: String,
}

impl Address {
    /// Returns the address as HTTP/2 has it.
    pub(crate) fn uri(&self) -> String {
        format!("{}://{}", if self.has_tls { "https" } else { "http" }, self.authority)
    }
}

impl FromStr for Address {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "{text:?} is no address of a server; write grpc://host:port or grpc+tls://user@host:port"
            ))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let has_tls = match scheme {
            "grpc" | "grpc+tcp" => false,
            "grpc+tls" => true,
            _ => return Err(wrong()),
        };
        let (user, host) =
            rest.trim_end_matches('/').rsplit_once('@').map_or((None, rest.trim_end_matches('/')), |(u, h)| (Some(u), h));
        let is_name = |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "/?#@".contains(c));
        if !is_name(host) || user.is_some_and(|user| !is_name(user)) {
            return Err(wrong());
        }
        // A password on a command line is seen by everybody on the machine.
        if user.is_some_and(|user| user.contains(':')) {
            return Err(Failure::usage(
                "write no password into the address; it is asked for, or taken from REFRAIN_PASSWORD",
            ));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) && !host.ends_with(']');
        let authority = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
        Ok(Address { has_tls, user: user.map(str::to_owned), authority })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.has_tls { "grpc+tls" } else { "grpc" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, uri: &str, user: Option<&str>) {
        let address: Address = text.parse().unwrap();
        assert_eq!((address.uri().as_str(), address.user.as_deref()), (uri, user));
    }

    #[test]
    fn addresses_are_read() {
        check("grpc://127.0.0.1:1234", "http://127.0.0.1:1234", None);
        check("grpc+tcp://h/", "http://h:31337", None);
        check("grpc+tls://ada@db.example:99", "https://db.example:99", Some("ada"));
        check("grpc+tls://[::1]", "https://[::1]:31337", None);
        assert_eq!("grpc+tls://ada@h".parse::<Address>().unwrap().to_string(), "grpc+tls://h:31337");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for wrong in ["", "h:1", "http://h:1", "grpc://", "grpc://a b", "grpc://@h", "grpc://h/x"] {
            assert_eq!(wrong.parse::<Address>().unwrap_err().exit_code(), 2, "{wrong}");
        }
        let error = "grpc://ada:secret@h".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("REFRAIN_PASSWORD") && !error.contains("secret"), "{error}");
    }
}
