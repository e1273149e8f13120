//! The types of SQL as `getTypeInfo` of JDBC and ODBC lists them.

use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{Nullable, Searchable, XdbcDataType, XdbcDatetimeSubcode};

/// Name, number, digits or length, and what encloses a literal.
type Row = (&'static str, XdbcDataType, Option<i32>, Option<(&'static str, &'static str)>);

/// The types that literals and columns may have.
const TYPES: &[Row] = &[
    ("BOOLEAN", XdbcDataType::XdbcBit, Some(1), None),
    ("TINYINT", XdbcDataType::XdbcTinyint, Some(3), None),
    ("SMALLINT", XdbcDataType::XdbcSmallint, Some(5), None),
    ("INTEGER", XdbcDataType::XdbcInteger, Some(10), None),
    ("BIGINT", XdbcDataType::XdbcBigint, Some(19), None),
    ("REAL", XdbcDataType::XdbcReal, Some(24), None),
    ("DOUBLE", XdbcDataType::XdbcDouble, Some(53), None),
    ("DECIMAL", XdbcDataType::XdbcDecimal, Some(76), None),
    ("VARCHAR", XdbcDataType::XdbcVarchar, None, Some(("'", "'"))),
    ("VARBINARY", XdbcDataType::XdbcVarbinary, None, Some(("X'", "'"))),
    ("DATE", XdbcDataType::XdbcDate, Some(10), Some(("DATE '", "'"))),
    ("TIME", XdbcDataType::XdbcTime, Some(18), Some(("TIME '", "'"))),
    ("TIMESTAMP", XdbcDataType::XdbcTimestamp, Some(29), Some(("TIMESTAMP '", "'"))),
    ("INTERVAL", XdbcDataType::XdbcInterval, None, Some(("INTERVAL '", "'"))),
];

/// Returns the table of types.
pub(super) fn type_info() -> Result<XdbcTypeInfoData> {
    let mut builder = XdbcTypeInfoDataBuilder::new();
    for row in TYPES {
        builder.append(info(row));
    }
    builder.build()
}

fn info(&(name, data_type, column_size, quotes): &Row) -> XdbcTypeInfo {
    let is_number = matches!(
        data_type,
        XdbcDataType::XdbcTinyint
            | XdbcDataType::XdbcSmallint
            | XdbcDataType::XdbcInteger
            | XdbcDataType::XdbcBigint
            | XdbcDataType::XdbcReal
            | XdbcDataType::XdbcDouble
            | XdbcDataType::XdbcDecimal
    );
    let is_float = matches!(data_type, XdbcDataType::XdbcReal | XdbcDataType::XdbcDouble);
    let is_decimal = data_type == XdbcDataType::XdbcDecimal;
    let (sql_data_type, datetime_subcode) = match data_type {
        XdbcDataType::XdbcDate => (XdbcDataType::XdbcDatetime, Some(XdbcDatetimeSubcode::XdbcSubcodeYear)),
        XdbcDataType::XdbcTime => (XdbcDataType::XdbcDatetime, Some(XdbcDatetimeSubcode::XdbcSubcodeTime)),
        XdbcDataType::XdbcTimestamp => (XdbcDataType::XdbcDatetime, Some(XdbcDatetimeSubcode::XdbcSubcodeTimestamp)),
        other => (other, None),
    };
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        column_size,
        literal_prefix: quotes.map(|(open, _)| open.to_owned()),
        literal_suffix: quotes.map(|(_, close)| close.to_owned()),
        create_params: is_decimal.then(|| vec!["precision".to_owned(), "scale".to_owned()]),
        nullable: Nullable::NullabilityNullable,
        case_sensitive: data_type == XdbcDataType::XdbcVarchar,
        searchable: Searchable::Full,
        unsigned_attribute: is_number.then_some(false),
        fixed_prec_scale: false,
        auto_increment: is_number.then_some(false),
        local_type_name: Some(name.to_owned()),
        minimum_scale: is_decimal.then_some(0),
        maximum_scale: is_decimal.then_some(76),
        sql_data_type,
        datetime_subcode,
        num_prec_radix: is_number.then_some(if is_float { 2 } else { 10 }),
        interval_precision: None,
    }
}
