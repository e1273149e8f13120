//! Settings as the session options of the protocol: `refrain.*` and `datafusion.*` by their names, `catalog` and `schema` for the
//! default ones.
//!
//! The messages are those of Flight.proto, which arrow-flight does not declare.

use std::collections::HashMap;

use datafusion::common::config::ConfigOptions;
use prost::Message;
use refrain_udf::Settings;

use super::sessions::Session;
use crate::Refrain;

/// A value of an option.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionOptionValue {
    /// Unset to give the option its default again.
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub(super) option_value: Option<OptionValue>,
}

/// The types of values.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum OptionValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(sfixed64, tag = "3")]
    Int64(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    TextList(TextList),
}

/// Several texts.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TextList {
    #[prost(string, repeated, tag = "1")]
    pub(super) values: Vec<String>,
}

/// Asks to change options.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}

/// Which options were not changed.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(super) errors: HashMap<String, OptionError>,
}

/// Why an option was not changed.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct OptionError {
    #[prost(int32, tag = "1")]
    pub(super) value: i32,
}

/// The options and their values.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(super) session_options: HashMap<String, SessionOptionValue>,
}

/// What became of a session that was to be closed.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct CloseSessionResult {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// `CloseSessionResult.Status.CLOSED`.
pub(super) const CLOSED: i32 = 1;

/// `SetSessionOptionsResult.ErrorValue`.
const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

/// Options with names of their own in the protocol, and the settings they are here.
const ALIASES: [(&str, &str); 2] =
    [("catalog", "datafusion.catalog.default_catalog"), ("schema", "datafusion.catalog.default_schema")];

/// Changes options, each for itself.
pub(super) fn set(session: &Session, request: SetSessionOptionsRequest) -> SetSessionOptionsResult {
    let set = |(name, value): (String, SessionOptionValue)| match set_one(&session.db, &name, value.option_value) {
        Ok(()) => None,
        Err(error) => Some((name, OptionError { value: error })),
    };
    SetSessionOptionsResult { errors: request.session_options.into_iter().filter_map(set).collect() }
}

/// Returns the options that have a value.
pub(super) fn get(session: &Session) -> GetSessionOptionsResult {
    let state = session.db.context().state();
    let entries = state.config_options().entries();
    let named = entries.into_iter().filter_map(|entry| {
        let alias = ALIASES.iter().find(|(_, setting)| *setting == entry.key).map(|(alias, _)| (*alias).to_owned());
        let name = alias.or_else(|| entry.key.starts_with("refrain.").then(|| entry.key.clone()))?;
        Some((name, SessionOptionValue { option_value: Some(OptionValue::Text(entry.value?)) }))
    });
    GetSessionOptionsResult { session_options: named.collect() }
}

fn set_one(db: &Refrain, name: &str, value: Option<OptionValue>) -> Result<(), i32> {
    let setting = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, setting)| setting);
    let context = db.context();
    if !context.state().config_options().entries().iter().any(|entry| entry.key == setting) {
        return Err(INVALID_NAME);
    }
    if let (Some(OptionValue::Text(catalog)), "catalog") = (&value, name)
        && context.catalog(catalog).is_none()
    {
        return Err(INVALID_VALUE);
    }
    let state = context.state_ref();
    let mut state = state.write();
    let options = state.config_mut().options_mut();
    let changed = match (text(value), setting.strip_prefix("refrain.")) {
        (Some(value), _) => options.set(setting, &value),
        (None, Some(own)) => match options.extensions.get_mut::<Settings>() {
            Some(settings) => settings.reset(own),
            None => return Err(INVALID_NAME),
        },
        (None, None) => {
            let default = ConfigOptions::default().entries().into_iter().find(|entry| entry.key == setting);
            options.set(setting, &default.and_then(|entry| entry.value).unwrap_or_default())
        }
    };
    changed.map_err(|_| INVALID_VALUE)
}

fn text(value: Option<OptionValue>) -> Option<String> {
    Some(match value? {
        OptionValue::Text(text) => text,
        OptionValue::Bool(value) => value.to_string(),
        OptionValue::Int64(value) => value.to_string(),
        OptionValue::Double(value) => value.to_string(),
        OptionValue::TextList(list) => list.values.join(","),
    })
}
