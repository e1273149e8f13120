//! Statements of our own beside DataFusion's: models, secrets, prompts, running queries and `RESET refrain.*`.
//!
//! ```sql
//! CREATE [OR REPLACE] MODEL [IF NOT EXISTS] qwen FROM 'models/qwen3-8b' [WITH (type = 'completion')];
//! CREATE [OR REPLACE] EXTERNAL MODEL [IF NOT EXISTS] gpt WITH (location = 'https://…/v1', model = '…', credential = openai_key);
//! DROP MODEL [IF EXISTS] qwen;
//! SHOW MODELS;
//! DESCRIBE MODEL qwen;
//! LOAD MODEL qwen;
//! UNLOAD MODEL qwen;
//! CREATE [OR REPLACE] [PERSISTENT] SECRET [IF NOT EXISTS] openai_key (TYPE openai, API_KEY '…');
//! DROP [PERSISTENT] SECRET [IF EXISTS] openai_key;
//! SHOW SECRETS;
//! CREATE [OR REPLACE] PROMPT [IF NOT EXISTS] refund(ticket VARCHAR) RETURNS BOOLEAN [MODEL qwen] AS '… {ticket}';
//! DROP PROMPT [IF EXISTS] refund;
//! SHOW PROMPTS;
//! DESCRIBE PROMPT refund;
//! KILL QUERY 7;
//! CALL ai_cache_clear(['session' | 'persistent' | 'checkpoint']);
//! RESET refrain.temperature;
//! EXPLAIN (SAMPLE 20, FORMAT json) SELECT …;
//! ```

mod explain;
mod kinds;
mod parser;
mod prompt;
mod script;
mod secret;

pub(crate) use kinds::Statement;
pub use kinds::{Existing, SecretFields};
pub(crate) use parser::parse;
pub(crate) use script::{number_placeholders, split};
