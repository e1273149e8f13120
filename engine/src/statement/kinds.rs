//! What statements of our own say, once they are parsed.

use std::fmt;

use datafusion::sql::parser::Statement as DataFusionStatement;
use refrain_udf::PromptDefinition;

use crate::explain::ExplainOptions;

/// One parsed statement.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// A statement that DataFusion plans.
    DataFusion(Box<DataFusionStatement>),
    /// `CREATE MODEL`.
    CreateModel {
        /// The name.
        name: String,
        /// A folder or file, or the shape of a random model.
        location: String,
        /// What happens to a model of this name.
        existing: Existing,
        /// `WITH (key = value, …)`.
        options: Vec<(String, String)>,
    },
    /// `CREATE EXTERNAL MODEL`.
    CreateExternalModel {
        /// The name.
        name: String,
        /// What happens to a model of this name.
        existing: Existing,
        /// `WITH (key = value, …)`.
        options: Vec<(String, String)>,
    },
    /// `DROP MODEL`.
    DropModel {
        /// The name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SHOW MODELS`.
    ShowModels,
    /// `DESCRIBE MODEL`.
    DescribeModel {
        /// The name.
        name: String,
    },
    /// `LOAD MODEL`.
    LoadModel {
        /// The name.
        name: String,
    },
    /// `UNLOAD MODEL`.
    UnloadModel {
        /// The name.
        name: String,
    },
    /// `CREATE SECRET`.
    CreateSecret {
        /// The name.
        name: String,
        /// `PERSISTENT`.
        persistent: bool,
        /// What happens to a secret of this name.
        existing: Existing,
        /// `(KEY value, …)`.
        fields: SecretFields,
    },
    /// `DROP SECRET`.
    DropSecret {
        /// The name.
        name: String,
        /// `PERSISTENT`: only one that outlives the session.
        persistent: bool,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SHOW SECRETS`.
    ShowSecrets,
    /// `CREATE PROMPT`.
    CreatePrompt {
        /// What the prompt is.
        definition: PromptDefinition,
        /// What happens to a prompt of this name.
        existing: Existing,
    },
    /// `DROP PROMPT`.
    DropPrompt {
        /// The name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `SHOW PROMPTS`.
    ShowPrompts,
    /// `DESCRIBE PROMPT`.
    DescribePrompt {
        /// The name.
        name: String,
    },
    /// `KILL QUERY`.
    KillQuery {
        /// The number of the query.
        id: u64,
    },
    /// `CALL ai_cache_clear([tier])`.
    ClearCache {
        /// The tier; that of the session if there is none.
        tier: Option<String>,
    },
    /// `EXPLAIN` in a form of ours: with `SAMPLE n` or `FORMAT json`.
    Explain {
        /// The form.
        options: ExplainOptions,
        /// The statement that is explained.
        statement: Box<DataFusionStatement>,
    },
    /// `RESET refrain.x`.
    Reset {
        /// The setting, without its prefix.
        setting: String,
    },
}

/// What a `CREATE` does where the name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fails.
    Refuse,
    /// Replaces what is there: `OR REPLACE`.
    Replace,
    /// Leaves what is there: `IF NOT EXISTS`.
    Keep,
}

/// The fields of a secret, keys in lower case. Never shown.
#[derive(Clone)]
pub struct SecretFields(pub Vec<(String, String)>);

impl fmt::Debug for SecretFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}
