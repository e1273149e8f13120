//! Tables in the shape of those of the catalogue, from a seed: no file and no network is needed, and no text is anybody's.
//!
//! A generated table has the columns and rows of the real one, and repeats itself as that does: how many values a column has and how often
//! each occurs, how long they are in characters and tokens, which columns determine others, which lean on each other, and in what order
//! rows are stored. These are what decides how much of a prompt rows can share. The numbers were read off the real tables by
//! `datasets/scripts/profile.py`; `docs/datasets.md` compares what strategies of reordering save on both.
//!
//! | module | what it holds |
//! |---|---|
//! | `movies`, `products`, `bird`, `beer`, `music`, `squad`, `fever` | the tables |
//! | `sheet_music` | the paper's own PDMX, by its make-up alone |
//! | `columns` | a table in the making |
//! | `distribution` | quantiles and skews, as they were measured |
//! | `retrieval` | passages that a search finds |
//! | `text` | words and names that say nothing |

mod beer;
mod bird;
mod columns;
mod distribution;
mod fever;
mod movies;
mod music;
mod products;
mod retrieval;
mod sheet_music;
mod squad;
mod table;
mod text;

pub use self::table::{generate, generate_as_in_the_paper};
pub use crate::random::permutation;
