//! What the server can do, as `GetSqlInfo` tells it.

use std::collections::{BTreeMap, BTreeSet};

use arrow_flight::error::Result;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity, SqlSupportedGroupBy,
    SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions, SqlTransactionIsolationLevel, SupportedSqlGrammar,
};
use datafusion::prelude::SessionContext;

/// Words that cannot be names without quotes, beyond those of SQL:2003, which drivers know.
const KEYWORDS: &[&str] = &[
    "ANTI", "ASOF", "COPY", "EXPLAIN", "FETCH", "ILIKE", "LIMIT", "MODEL", "OFFSET", "QUALIFY", "SECRET", "SEMI", "TRY_CAST",
];

/// Returns the answers to all codes that mean anything here.
pub(super) fn sql_info(context: &SessionContext) -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info);
    names(&mut info);
    functions(&mut info, context);
    grammar(&mut info);
    limits(&mut info);
    transactions(&mut info);
    info.build()
}

fn server(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::FlightSqlServerName, "Refrain");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, datafusion::arrow::ARROW_VERSION);
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    // Prepared statements live as long as their session.
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
}

fn names(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::SqlDdlCatalog, true);
    info.append(SqlInfo::SqlDdlSchema, true);
    info.append(SqlInfo::SqlDdlTable, true);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    info.append(SqlInfo::SqlKeywords, KEYWORDS);
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlExtraNameCharacters, "");
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlProcedureTerm, "procedure");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
}

/// Lists functions by the chapter of the manual they stand in; those of language models are functions of text.
fn functions(info: &mut SqlInfoDataBuilder, context: &SessionContext) {
    let (mut numeric, mut text, mut time, mut system) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (name, function) in context.state().scalar_functions() {
        let chapter = function.documentation().map_or("", |documentation| documentation.doc_section.label);
        let list = match chapter {
            _ if name.starts_with("ai_") => &mut text,
            "Math Functions" => &mut numeric,
            "String Functions" | "Binary String Functions" | "Regular Expression Functions" => &mut text,
            "Time and Date Functions" => &mut time,
            _ => &mut system,
        };
        list.insert(name.clone());
    }
    let listed = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>();
    info.append(SqlInfo::SqlNumericFunctions, listed(numeric));
    info.append(SqlInfo::SqlStringFunctions, listed(text));
    info.append(SqlInfo::SqlSystemFunctions, listed(system));
    info.append(SqlInfo::SqlDatetimeFunctions, listed(time));
}

fn grammar(info: &mut SqlInfoDataBuilder) {
    for code in [
        SqlInfo::SqlSupportsColumnAliasing,
        SqlInfo::SqlNullPlusNullIsNull,
        SqlInfo::SqlSupportsTableCorrelationNames,
        SqlInfo::SqlSupportsExpressionsInOrderBy,
        SqlInfo::SqlSupportsOrderByUnrelated,
        SqlInfo::SqlSupportsLikeEscapeClause,
        SqlInfo::SqlSupportsNonNullableColumns,
        SqlInfo::SqlCorrelatedSubqueriesSupported,
    ] {
        info.append(code, true);
    }
    for code in [
        SqlInfo::SqlSupportsDifferentTableCorrelationNames,
        SqlInfo::SqlSupportsIntegrityEnhancementFacility,
        SqlInfo::SqlSelectForUpdateSupported,
        SqlInfo::SqlStoredProceduresSupported,
        SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported,
        SqlInfo::SqlLocatorsUpdateCopy,
    ] {
        info.append(code, false);
    }
    let flags = |bits: &[i32]| bits.iter().fold(0_i32, |mask, bit| mask | 1 << bit);
    let group_by = [SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32];
    let grammars = [
        SupportedSqlGrammar::SqlMinimumGrammar as i32,
        SupportedSqlGrammar::SqlCoreGrammar as i32,
        SupportedSqlGrammar::SqlExtendedGrammar as i32,
    ];
    let joins =
        [SqlOuterJoinsSupportLevel::SqlLimitedOuterJoins as i32, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32];
    let subqueries = [
        SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
        SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
        SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        SqlSupportedSubqueries::SqlSubqueriesInQuantifieds as i32,
    ];
    let unions = [SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32];
    info.append(SqlInfo::SqlSupportedGroupBy, flags(&group_by));
    info.append(SqlInfo::SqlSupportedGrammar, flags(&grammars));
    // The entry level of SQL-92.
    info.append(SqlInfo::SqlAnsi92SupportedLevel, flags(&[0]));
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, flags(&joins));
    info.append(SqlInfo::SqlSupportedSubqueries, flags(&subqueries));
    info.append(SqlInfo::SqlSupportedUnions, flags(&unions));
    // Schemas and catalogs may be named in no statement but queries; cursors cannot be positioned.
    info.append(SqlInfo::SqlSchemasSupportedActions, 0_i32);
    info.append(SqlInfo::SqlCatalogsSupportedActions, 0_i32);
    info.append(SqlInfo::SqlSupportedPositionedCommands, 0_i32);
    info.append(SqlInfo::SqlSupportsConvert, BTreeMap::<i32, Vec<i32>>::new());
    // Results are read forward, once.
    info.append(SqlInfo::SqlSupportedResultSetTypes, flags(&[1]));
    for code in [
        SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified,
        SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive,
        SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive,
    ] {
        info.append(code, 0_i32);
    }
    info.append(SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, flags(&[1]));
    info.append(SqlInfo::SqlBatchUpdatesSupported, true);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
}

/// Lengths and numbers that are limited in other systems; 0 is no limit.
fn limits(info: &mut SqlInfoDataBuilder) {
    for code in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatementLength,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxTablesInSelect,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        info.append(code, 0_i64);
    }
    info.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
}

fn transactions(info: &mut SqlInfoDataBuilder) {
    info.append(SqlInfo::SqlDefaultTransactionIsolation, SqlTransactionIsolationLevel::SqlTransactionNone as i32);
    info.append(SqlInfo::SqlTransactionsSupported, false);
    info.append(SqlInfo::SqlSupportedTransactionsIsolationLevels, 0_i32);
    info.append(SqlInfo::SqlDataDefinitionCausesTransactionCommit, false);
    info.append(SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false);
    info.append(SqlInfo::SqlSavepointsSupported, false);
}
