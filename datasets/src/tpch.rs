//! The tables of TPC-H at any scale, from the specification's own generator.

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

/// The names of the eight tables.
pub const TABLES: [&str; 8] = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

/// The columns of a table, and its rows batch by batch.
pub struct Table {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows, generated as they are asked for.
    pub batches: Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>,
}

/// Generates a table; at a scale of 1 all eight have a gigabyte as text. `None` if TPC-H has no such table.
pub fn table(name: &str, scale: f64) -> Option<Table> {
    macro_rules! generated {
        ($arrow:ident, $generator:ident) => {
            Table { schema: $arrow::schema_ref(), batches: Box::new($arrow::new($generator::new(scale, 1, 1))) }
        };
    }
    Some(match name {
        "customer" => generated!(CustomerArrow, CustomerGenerator),
        "lineitem" => generated!(LineItemArrow, LineItemGenerator),
        "nation" => generated!(NationArrow, NationGenerator),
        "orders" => generated!(OrderArrow, OrderGenerator),
        "part" => generated!(PartArrow, PartGenerator),
        "partsupp" => generated!(PartSuppArrow, PartSuppGenerator),
        "region" => generated!(RegionArrow, RegionGenerator),
        "supplier" => generated!(SupplierArrow, SupplierGenerator),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(name: &str, scale: f64) -> usize {
        table(name, scale).unwrap().batches.map(|batch| batch.unwrap().num_rows()).sum()
    }

    #[test]
    fn tables_have_the_rows_of_the_specification() {
        let expected = [1_500, 60_175, 25, 15_000, 2_000, 8_000, 5, 100];
        for (name, expected) in TABLES.into_iter().zip(expected) {
            assert_eq!(rows(name, 0.01), expected, "{name}");
        }
        assert!(table("reviews", 1.0).is_none());
    }
}
