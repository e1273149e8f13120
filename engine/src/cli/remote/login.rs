//! Who the user is to a server, and the options of the command line that say so.

use std::path::{Path, PathBuf};

use console::Term;
use tonic::transport::Identity;

use super::address::Address;
use super::connection::{Certificates, Remote};
use crate::cli::error::{Failure, Outcome};

/// Options that name a server.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ServerArgs {
    /// Run statements on this server: grpc://host:port, or grpc+tls://host:port
    #[arg(long, value_name = "URI")]
    pub(crate) connect: Option<String>,

    /// User; the password is REFRAIN_PASSWORD, or asked for
    #[arg(long, value_name = "NAME", requires = "connect")]
    pub(crate) user: Option<String>,

    /// Token, for servers that know users by tokens; others see it in the list of processes, so better set REFRAIN_TOKEN
    #[arg(long, value_name = "TOKEN", env = "REFRAIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// Root of the server's certificate in PEM; by default one of those that the system trusts
    #[arg(long, value_name = "FILE", env = "REFRAIN_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Certificate to show to servers that demand one, in PEM
    #[arg(long, value_name = "FILE", env = "REFRAIN_TLS_CERT", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", env = "REFRAIN_TLS_KEY", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// Who the user is.
#[derive(Clone)]
pub(crate) enum Login {
    /// Whoever the server takes everybody for.
    Nobody,
    /// Whose token this is.
    Token(String),
    /// The user of this name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

impl ServerArgs {
    /// Connects to the server that the command line names.
    pub(crate) async fn open(&self, address: &str) -> Outcome<Remote> {
        let address: Address = address.parse()?;
        let user = self.user.as_ref().or(address.user.as_ref());
        let login = match (user, &self.token) {
            (Some(user), _) => {
                let known = std::env::var("REFRAIN_PASSWORD").ok();
                let password = known.map_or_else(|| ask_password(user), Ok)?;
                Login::Password { user: user.clone(), password }
            }
            (None, Some(token)) => Login::Token(token.clone()),
            (None, None) => Login::Nobody,
        };
        self.open_as(address, login).await
    }

    /// Connects to another server. What proves the user to the first one is not shown to it.
    pub(crate) async fn open_other(&self, address: &str) -> Outcome<Remote> {
        let address: Address = address.parse()?;
        let login = match &address.user {
            Some(user) => Login::Password { user: user.clone(), password: ask_password(user)? },
            None => Login::Nobody,
        };
        self.open_as(address, login).await
    }

    async fn open_as(&self, address: Address, login: Login) -> Outcome<Remote> {
        let root = self.tls_ca.as_deref().map(read).transpose()?;
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Identity::from_pem(read(certificate)?, read(key)?)),
            _ => None,
        };
        Remote::open(address, login, Certificates { root, identity }).await
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|error| Failure::file("read", path, error))
}

/// Asks for a password where a person can type one.
fn ask_password(user: &str) -> Outcome<String> {
    let terminal = Term::stderr();
    if !terminal.is_term() {
        return Err(Failure::usage(format!("there is no password for {user}; set REFRAIN_PASSWORD, or use a terminal")));
    }
    let asked = tokio::task::block_in_place(|| {
        terminal.write_str(&format!("password for {user}: "))?;
        terminal.read_secure_line()
    });
    asked.map_err(|error| Failure::io("cannot read the password", error))
}
