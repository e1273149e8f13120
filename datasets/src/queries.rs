//! The queries of the benchmarks, as files in `datasets/queries/`, with what the paper measured of them.

/// What a query does with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKind {
    /// A predicate in WHERE.
    Filter,
    /// A text for each row.
    Projection,
    /// Several calls, one after the other.
    Multi,
    /// An aggregate over answers.
    Aggregation,
    /// Answers from passages that are retrieved, or were.
    Rag,
    /// Pairs of rows that the model compares.
    Join,
    /// Nothing: SQL without a model.
    Plain,
}

/// The benchmark that a query belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// "Optimizing LLM Queries in Relational Data Analytics Workloads" (arXiv 2403.05821): sixteen queries, and two whose passages are
    /// retrieved in SQL.
    LlmSql,
    /// The Movie scenario of SemBench (arXiv 2511.01716): ten queries.
    SemBenchMovie,
    /// Prompts that are long enough for the caches of providers.
    ApiCost,
    /// Questions whose answers the data knows: each gives `answer` beside `label`, or beside a `reference` in other words, and says in
    /// `key` what was asked, so that answers of two runs can be compared one by one.
    Quality,
    /// The 22 queries of TPC-H with their validation parameters: what the engine around the model takes.
    TpcH,
}

/// What the paper reports of a query: Llama 3 8B on one L4, over its own table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Share of prompt tokens found in the cache, in percent, with rows and fields as stored.
    pub hit_rate_stored: f64,
    /// The same in the order that the paper's algorithm chooses.
    pub hit_rate: f64,
    /// How much faster that order is than a server without a prefix cache.
    pub speedup_over_no_cache: f64,
    /// How much faster it is than the stored order with a prefix cache.
    pub speedup_over_stored: f64,
}

/// A query of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Query {
    /// Its name, that of its file without the ending.
    pub name: &'static str,
    /// The benchmark.
    pub suite: Suite,
    /// What it does with the model.
    pub kind: QueryKind,
    /// The tables that it reads: of the catalogue, or of TPC-H (feature `tpch`).
    pub tables: &'static [&'static str],
    /// Its text: a comment that says what it is, and one statement.
    pub sql: &'static str,
    /// A statement that has to run before, once the tables are there.
    pub setup: Option<&'static str>,
    /// Parameters of the statement by name (`film` for `$film`), each with a query for its value, to be run after `setup`.
    pub parameters: &'static [(&'static str, &'static str)],
    /// What the paper reports of it.
    pub paper: Option<Figures>,
}

impl Query {
    /// Whether it needs an embedding model besides one that completes text.
    pub fn needs_embeddings(&self) -> bool {
        self.sql.contains("ai_embed(")
    }
}

/// Returns every query.
pub fn queries() -> &'static [Query] {
    &QUERIES
}

/// Returns the query of this name.
pub fn query(name: &str) -> Option<&'static Query> {
    QUERIES.iter().find(|query| query.name == name)
}

/// The text of a file in `datasets/queries/`.
macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!("../queries/", $name, ".sql"))
    };
}

/// A query of the paper: its name, kind and tables, and the two speed-ups. Hit rates are those of its table.
macro_rules! paper {
    ($name:literal, $kind:ident, $tables:expr, $hit_rates:expr, $speedups:expr) => {
        Query {
            name: $name,
            suite: Suite::LlmSql,
            kind: QueryKind::$kind,
            tables: $tables,
            sql: sql!($name),
            setup: None,
            parameters: &[],
            paper: figures($hit_rates, $speedups),
        }
    };
}

const fn figures((hit_rate_stored, hit_rate): (f64, f64), speedups: (f64, f64)) -> Option<Figures> {
    let (speedup_over_no_cache, speedup_over_stored) = speedups;
    Some(Figures { hit_rate_stored, hit_rate, speedup_over_no_cache, speedup_over_stored })
}

// Hit rates in percent, as stored and in the paper's order; the paper gives them by table, measured with the filter or RAG query.
const MOVIES: (f64, f64) = (34.6, 85.7);
const PRODUCTS: (f64, f64) = (26.7, 83.3);
const BIRD: (f64, f64) = (10.4, 84.8);
const PDMX: (f64, f64) = (11.8, 56.6);
const BEER: (f64, f64) = (49.9, 80.1);
const FEVER: (f64, f64) = (11.2, 67.4);
const SQUAD: (f64, f64) = (11.0, 69.7);

/// A query of SemBench's Movie scenario.
macro_rules! movie {
    ($name:literal, $kind:ident) => {
        Query {
            name: $name,
            suite: Suite::SemBenchMovie,
            kind: QueryKind::$kind,
            tables: &["movies_15k"],
            sql: sql!($name),
            setup: Some(sql!("sembench-movie-tables")),
            parameters: &[("film", sql!("sembench-movie-film"))],
            paper: None,
        }
    };
}

/// A query of which the paper reports nothing.
macro_rules! plain {
    ($name:literal, $suite:ident, $kind:ident, $tables:expr) => {
        Query {
            name: $name,
            suite: Suite::$suite,
            kind: QueryKind::$kind,
            tables: $tables,
            sql: sql!($name),
            setup: None,
            parameters: &[],
            paper: None,
        }
    };
}

static QUERIES: [Query; 55] = [
    paper!("movies-filter", Filter, &["movies"], MOVIES, (3.8, 2.5)),
    paper!("products-filter", Filter, &["products"], PRODUCTS, (3.8, 3.0)),
    paper!("bird-filter", Filter, &["bird"], BIRD, (2.7, 2.6)),
    paper!("pdmx-filter", Filter, &["pdmx"], PDMX, (2.1, 1.8)),
    paper!("beer-filter", Filter, &["beer"], BEER, (3.8, 2.0)),
    paper!("movies-projection", Projection, &["movies"], MOVIES, (3.3, 2.4)),
    paper!("products-projection", Projection, &["products"], PRODUCTS, (2.6, 2.4)),
    paper!("bird-projection", Projection, &["bird"], BIRD, (3.7, 3.4)),
    paper!("pdmx-projection", Projection, &["pdmx"], PDMX, (1.9, 1.9)),
    paper!("beer-projection", Projection, &["beer"], BEER, (2.4, 1.5)),
    paper!("movies-multi", Multi, &["movies"], MOVIES, (2.7, 1.7)),
    paper!("products-multi", Multi, &["products"], PRODUCTS, (2.8, 2.2)),
    paper!("movies-aggregation", Aggregation, &["movies"], MOVIES, (3.5, 2.5)),
    paper!("products-aggregation", Aggregation, &["products"], PRODUCTS, (3.7, 2.8)),
    paper!("fever-rag-prepared", Rag, &["fever_rag"], FEVER, (1.9, 1.8)),
    paper!("squad-rag-prepared", Rag, &["squad_rag"], SQUAD, (1.8, 1.7)),
    paper!("fever-rag", Rag, &["fever_claims", "fever_evidence_pairs"], FEVER, (1.9, 1.8)),
    paper!("squad-rag", Rag, &["squad"], SQUAD, (1.8, 1.7)),
    movie!("sembench-movie-q1", Filter),
    movie!("sembench-movie-q2", Filter),
    movie!("sembench-movie-q3", Filter),
    movie!("sembench-movie-q4", Aggregation),
    movie!("sembench-movie-q5", Join),
    movie!("sembench-movie-q6", Join),
    movie!("sembench-movie-q7", Join),
    movie!("sembench-movie-q8", Projection),
    movie!("sembench-movie-q9", Projection),
    movie!("sembench-movie-q10", Aggregation),
    plain!("api-cost-fever", ApiCost, Rag, &["fever_rag"]),
    plain!("quality-movies", Quality, Projection, &["movies"]),
    plain!("quality-products", Quality, Projection, &["products"]),
    plain!("quality-fever", Quality, Rag, &["fever_rag", "fever_claims"]),
    plain!("quality-squad", Quality, Rag, &["squad_rag", "squad"]),
    plain!("tpch-q1", TpcH, Plain, &["lineitem"]),
    plain!("tpch-q2", TpcH, Plain, &["part", "supplier", "partsupp", "nation", "region"]),
    plain!("tpch-q3", TpcH, Plain, &["customer", "orders", "lineitem"]),
    plain!("tpch-q4", TpcH, Plain, &["orders", "lineitem"]),
    plain!("tpch-q5", TpcH, Plain, &["customer", "orders", "lineitem", "supplier", "nation", "region"]),
    plain!("tpch-q6", TpcH, Plain, &["lineitem"]),
    plain!("tpch-q7", TpcH, Plain, &["supplier", "lineitem", "orders", "customer", "nation"]),
    plain!("tpch-q8", TpcH, Plain, &["part", "supplier", "lineitem", "orders", "customer", "nation", "region"]),
    plain!("tpch-q9", TpcH, Plain, &["part", "supplier", "lineitem", "partsupp", "orders", "nation"]),
    plain!("tpch-q10", TpcH, Plain, &["customer", "orders", "lineitem", "nation"]),
    plain!("tpch-q11", TpcH, Plain, &["partsupp", "supplier", "nation"]),
    plain!("tpch-q12", TpcH, Plain, &["orders", "lineitem"]),
    plain!("tpch-q13", TpcH, Plain, &["customer", "orders"]),
    plain!("tpch-q14", TpcH, Plain, &["lineitem", "part"]),
    plain!("tpch-q15", TpcH, Plain, &["lineitem", "supplier"]),
    plain!("tpch-q16", TpcH, Plain, &["partsupp", "part", "supplier"]),
    plain!("tpch-q17", TpcH, Plain, &["lineitem", "part"]),
    plain!("tpch-q18", TpcH, Plain, &["customer", "orders", "lineitem"]),
    plain!("tpch-q19", TpcH, Plain, &["lineitem", "part"]),
    plain!("tpch-q20", TpcH, Plain, &["supplier", "nation", "partsupp", "part", "lineitem"]),
    plain!("tpch-q21", TpcH, Plain, &["supplier", "lineitem", "orders", "nation"]),
    plain!("tpch-q22", TpcH, Plain, &["customer", "orders"]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::catalogue::dataset;

    /// Files that belong to queries and are none.
    const PARTS: [&str; 2] = ["sembench-movie-film", "sembench-movie-tables"];

    #[test]
    fn every_file_is_a_query_or_part_of_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
        let stem = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()
        };
        let files: BTreeSet<String> = std::fs::read_dir(folder).unwrap().map(stem).collect();
        let named: BTreeSet<String> = queries().iter().map(|query| query.name).chain(PARTS).map(str::to_owned).collect();
        assert_eq!(files, named);
    }

    #[test]
    fn queries_say_what_they_are_and_read_tables_of_the_catalogue() {
        for query in queries() {
            assert!(query.sql.starts_with("-- ") && query.sql.trim_end().ends_with(';'), "{}", query.name);
            let is_known = |table: &&str| dataset(table).is_some() || query.suite == Suite::TpcH;
            assert!(query.tables.iter().all(is_known), "{}", query.name);
        }
    }

    #[test]
    fn answers_that_are_judged_say_to_what_they_are() {
        for query in queries().iter().filter(|query| query.suite == Suite::Quality) {
            let names = [" AS key,", " AS answer", "label", "reference"].map(|name| query.sql.contains(name));
            assert!(names[0] && names[1] && (names[2] || names[3]), "{}", query.name);
        }
    }

    #[test]
    fn the_paper_has_sixteen() {
        let of_the_paper = |query: &&Query| query.suite == Suite::LlmSql && !query.needs_embeddings();
        assert_eq!(queries().iter().filter(of_the_paper).count(), 16);
    }
}
