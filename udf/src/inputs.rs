//! The inputs of a call: structs taken apart into their fields, and the labels under which a prompt shows them.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::logical_expr::{Expr, ExprSchemable, lit};

use crate::constant::struct_columns;
use crate::placeholder::passages_arg;

/// The label of passages.
const PASSAGES: &str = "passages";

/// One input of a call, never a struct that could be taken apart.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) expr: Expr,
    name: InputName,
    /// Whether it is a list whose items may stand in any order.
    pub(crate) is_passages: bool,
}

#[derive(Debug)]
enum InputName {
    Column(Column),
    Field(String),
    /// An expression; it is named by its position.
    None,
}

/// Returns the inputs that these arguments stand for, in order: a struct stands for its fields.
pub(crate) fn inputs(args: &[Expr], schema: &DFSchema) -> Vec<Input> {
    args.iter().flat_map(|arg| inputs_of(arg, schema)).collect()
}

fn inputs_of(arg: &Expr, schema: &DFSchema) -> Vec<Input> {
    let field = |name: String, expr: Expr| Input { expr, name: InputName::Field(name), is_passages: false };
    if let Some(list) = passages_arg(arg) {
        return vec![Input { is_passages: true, ..field(PASSAGES.to_owned(), list.clone()) }];
    }
    match arg {
        Expr::Alias(alias) => return inputs_of(&alias.expr, schema),
        Expr::ScalarFunction(function) if function.func.name() == "named_struct" => {
            if let Some(pairs) = named_pairs(&function.args) {
                return pairs.into_iter().map(|(name, expr)| field(name, expr)).collect();
            }
        }
        Expr::Literal(value, _) => {
            if let Some(columns) = struct_columns(value) {
                return columns.into_iter().map(|(name, value)| field(name, lit(value))).collect();
            }
        }
        _ => {}
    }
    // An expression whose type cannot be told here is no struct that we know of; planning reports it where it matters.
    if let Ok(DataType::Struct(fields)) = arg.get_type(schema) {
        let part = |name: &String| field(name.clone(), get_field(arg.clone(), name.as_str()));
        return fields.iter().map(|field| part(field.name())).collect();
    }
    let name = match arg {
        Expr::Column(column) | Expr::OuterReferenceColumn(_, column) => InputName::Column(column.clone()),
        _ => InputName::None,
    };
    vec![Input { expr: arg.clone(), name, is_passages: false }]
}

/// Reads the arguments of `named_struct`, if all names are literal.
fn named_pairs(args: &[Expr]) -> Option<Vec<(String, Expr)>> {
    let pair = |pair: &[Expr]| match pair {
        [Expr::Literal(name, _), value] => Some((name.try_as_str()??.to_string(), value.clone())),
        _ => None,
    };
    args.chunks(2).map(pair).collect()
}

/// Returns the labels of the inputs, which are distinct: a column's name, qualified where two columns share it; a struct's
/// field names; `input1`, `input2`, … by position for other expressions.
pub(crate) fn labels(inputs: &[Input]) -> Vec<String> {
    let mut labels: Vec<String> = Vec::with_capacity(inputs.len());
    for (position, input) in inputs.iter().enumerate() {
        let label = match &input.name {
            InputName::Column(column) => column_label(column, inputs),
            InputName::Field(name) => name.clone(),
            InputName::None => format!("input{}", position + 1),
        };
        labels.push(distinct(label, &labels));
    }
    labels
}

fn column_label(column: &Column, inputs: &[Input]) -> String {
    let shares_name = |input: &Input| match &input.name {
        InputName::Column(other) => other.name == column.name && other.relation != column.relation,
        InputName::Field(name) => *name == column.name,
        InputName::None => false,
    };
    match &column.relation {
        Some(relation) if inputs.iter().any(shares_name) => {
            format!("{}.{}", relation.table(), column.name)
        }
        _ => column.name.clone(),
    }
}

fn distinct(label: String, taken: &[String]) -> String {
    if !taken.contains(&label) {
        return label;
    }
    let free = (2..).map(|number| format!("{label}_{number}")).find(|candidate| !taken.contains(candidate));
    free.expect("one of more numbers than labels is free")
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::datatypes::{Field, Schema};
    use datafusion::functions::expr_fn::upper;
    use datafusion::prelude::{col, named_struct};

    #[track_caller]
    fn check(args: &[Expr], expected: &[&str]) {
        let address =
            DataType::Struct(vec![Field::new("city", DataType::Utf8, true), Field::new("zip", DataType::Utf8, true)].into());
        let columns = |with: &str| {
            let schema =
                Schema::new(vec![Field::new("body", DataType::Utf8, true), Field::new("address", address.clone(), true)]);
            DFSchema::try_from_qualified_schema(with, &schema).unwrap()
        };
        let schema = columns("r").join(&columns("s")).unwrap();
        assert_eq!(labels(&inputs(args, &schema)), expected);
    }

    #[test]
    fn labels_inputs() {
        check(&[col("r.body")], &["body"]);
        check(&[col("r.body"), col("s.body")], &["r.body", "s.body"]);
        check(&[col("r.body"), col("r.body")], &["body", "body_2"]);
        check(&[upper(col("r.body")), col("r.body"), lit("x")], &["input1", "body", "input3"]);
        check(&[named_struct(vec![lit("title"), upper(col("r.body"))])], &["title"]);
        check(&[col("r.address"), col("s.body")], &["city", "zip", "body"]);
        check(&[], &[]);
    }

    #[test]
    fn takes_structs_apart() {
        let schema = DFSchema::empty();
        let parts = inputs(&[named_struct(vec![lit("a"), lit(1), lit("b"), col("x")])], &schema);
        let exprs: Vec<Expr> = parts.into_iter().map(|input| input.expr).collect();
        assert_eq!(exprs, [lit(1), col("x")]);
    }
}
