//! Statements that run on a server, over Flight SQL.
//!
//! | part | what it is |
//! |---|---|
//! | [`address`] | where a server is, as the user writes it |
//! | [`login`] | who the user is, and the options that say so |
//! | [`connection`] | a session on it, and the calls that all else is made of |
//! | [`listings`] | what it knows: tables, functions, models, settings |
//! | [`statement`] | one statement that runs there |

mod address;
mod connection;
mod listings;
mod login;
mod statement;

pub(crate) use login::ServerArgs;
