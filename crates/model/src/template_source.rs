//! A template's source, written anew so that whatever makes values larger is metered.
//!
//! In: the source of a template. Out: a source that renders the same, in which every operand of `~` and `+`, every product, slice, list,
//! call and filter, and what they and comparisons read, passes through a filter of [`crate::template_meter`], and in which text is an
//! expression too, so that the formatter sees all that is written. Deliberately not here: the meter itself.
//!
//! Why it is needed: minijinja's fuel counts instructions, its recursion limit calls, and a bounded writer what comes out, but operators are
//! no function that an environment could replace, and one instruction of theirs can double what the last one made. After
//! `{% set x = 'ab' %}`, forty times `{% set x = x ~ x %}` ask for two terabytes, which aborts the process; and after `{% set x = [x, x] %}` as often,
//! comparing the result with its twin takes 2^40 steps in one instruction. `operators_are_beyond_fuel` in the tests fails when that is no longer so.
//!
//! minijinja's syntax tree is not a stable interface, which is why its version is pinned; what is not in `Writer::statement` is
//! refused.

use minijinja::Value;
use minijinja::machinery::ast::{BinOpKind, Call, CallArg, CompareOpKind, Expr, Macro, Stmt, UnaryOpKind};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;

use crate::template_meter::{KEPT, OPERAND, PRODUCT, READ, RESULT};

/// Most bytes of the written source for each byte of the read one, and besides.
const GROWTH_MAX: usize = 64;

/// Tests that look at the kind of a value, and no further.
const KIND_TESTS: &[&str] = &[
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "true",
    "false",
];

/// Writes a source anew. `name` is for messages.
///
/// # Errors
/// The parser's words, or what is not read.
pub(crate) fn metered(name: &str, source: &str, syntax: SyntaxConfig) -> Result<String, String> {
    let told = |error: minijinja::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let template = parse(source, name, syntax).map_err(told)?;
    let mut writer = Writer { out: String::with_capacity(2 * source.len()) };
    writer.statement(&template)?;
    match writer.out.len() > GROWTH_MAX * (source.len() + 64) {
        true => Err("it is nested too deeply".to_owned()),
        false => Ok(writer.out),
    }
}

struct Writer {
    out: String,
}

type Written = Result<(), String>;

impl Writer {
    fn text(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn statements(&mut self, all: &[Stmt<'_>]) -> Written {
        all.iter().try_for_each(|statement| self.statement(statement))
    }

    /// `{% words … %}`, the rest by `write`.
    fn tag(&mut self, words: &str, write: impl FnOnce(&mut Self) -> Written) -> Written {
        self.text("{% ");
        self.text(words);
        write(self)?;
        self.text(" %}");
        Ok(())
    }

    fn end(&mut self, word: &str) {
        self.text("{% ");
        self.text(word);
        self.text(" %}");
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Written {
        match statement {
            Stmt::Template(template) => self.statements(&template.children)?,
            Stmt::EmitExpr(emit) => {
                self.text("{{ ");
                self.expression(&emit.expr)?;
                self.text(" }}");
            }
            Stmt::EmitRaw(emit) => {
                self.text("{{ ");
                self.string(emit.raw);
                self.text(" }}");
            }
            Stmt::ForLoop(looped) => {
                self.tag("for ", |w| {
                    w.target(&looped.target)?;
                    w.text(" in ");
                    w.expression(&looped.iter)?;
                    if let Some(filter) = &looped.filter_expr {
                        w.text(" if ");
                        w.expression(filter)?;
                    }
                    w.text(if looped.recursive { " recursive" } else { "" });
                    Ok(())
                })?;
                self.statements(&looped.body)?;
                if !looped.else_body.is_empty() {
                    self.end("else");
                    self.statements(&looped.else_body)?;
                }
                self.end("endfor");
            }
            Stmt::IfCond(condition) => {
                let mut condition = condition;
                self.tag("if ", |w| w.expression(&condition.expr))?;
                self.statements(&condition.true_body)?;
                // Not nested as the tree is: a long chain must not reach the parser's depth.
                while let [Stmt::IfCond(next)] = condition.false_body.as_slice() {
                    condition = next;
                    self.tag("elif ", |w| w.expression(&condition.expr))?;
                    self.statements(&condition.true_body)?;
                }
                if !condition.false_body.is_empty() {
                    self.end("else");
                    self.statements(&condition.false_body)?;
                }
                self.end("endif");
            }
            Stmt::WithBlock(with) => {
                self.tag("with ", |w| {
                    w.list(&with.assignments, |w, (target, value)| {
                        w.target(target)?;
                        w.text(" = ");
                        w.expression(value)
                    })
                })?;
                self.statements(&with.body)?;
                self.end("endwith");
            }
            Stmt::Set(set) => self.tag("set ", |w| {
                w.target(&set.target)?;
                w.text(" = ");
                match &set.target {
                    // What a namespace keeps outlives the statement.
                    Expr::GetAttr(_) => w.through(KEPT, |w| w.expression(&set.expr)),
                    _ => w.expression(&set.expr),
                }
            })?,
            Stmt::SetBlock(set) => {
                self.tag("set ", |w| {
                    w.target(&set.target)?;
                    match &set.filter {
                        Some(filter) => {
                            w.text(" | ");
                            w.filters(filter)
                        }
                        None => Ok(()),
                    }
                })?;
                self.statements(&set.body)?;
                self.end("endset");
            }
            Stmt::FilterBlock(block) => {
                self.tag("filter ", |w| w.filters(&block.filter))?;
                self.statements(&block.body)?;
                self.end("endfilter");
            }
            Stmt::Macro(declared) => {
                self.tag(&format!("macro {}", declared.name), |w| w.parameters(declared))?;
                self.statements(&declared.body)?;
                self.end("endmacro");
            }
            Stmt::CallBlock(block) => {
                self.tag("call", |w| {
                    w.parameters(&block.macro_decl)?;
                    w.text(" ");
                    w.call(&block.call)
                })?;
                self.statements(&block.macro_decl.body)?;
                self.end("endcall");
            }
            Stmt::Do(done) => self.tag("do ", |w| w.call(&done.call))?,
            Stmt::Continue(_) => self.end("continue"),
            Stmt::Break(_) => self.end("break"),
            Stmt::AutoEscape(_) => return Err("autoescape blocks are not read".to_owned()),
            Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                return Err("blocks, and other templates, are not read".to_owned());
            }
        }
        Ok(())
    }

    /// Items between commas.
    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T) -> Written) -> Written {
        for (i, item) in items.iter().enumerate() {
            self.text(if i == 0 { "" } else { ", " });
            write(self, item)?;
        }
        Ok(())
    }

    /// A value through a filter of the meter.
    fn through(&mut self, filter: &str, write: impl FnOnce(&mut Self) -> Written) -> Written {
        self.text("(");
        write(self)?;
        self.text(")|");
        self.text(filter);
        Ok(())
    }

    /// What is assigned to.
    fn target(&mut self, target: &Expr<'_>) -> Written {
        match target {
            Expr::Var(variable) => self.text(variable.id),
            Expr::GetAttr(attribute) => {
                self.target(&attribute.expr)?;
                self.text(".");
                self.text(attribute.name);
            }
            Expr::List(list) => self.targets(&list.items)?,
            Expr::Tuple(tuple) => self.targets(&tuple.items)?,
            other => return Err(format!("a {} is no target of an assignment", other.description())),
        }
        Ok(())
    }

    fn targets(&mut self, targets: &[Expr<'_>]) -> Written {
        self.text("(");
        self.list(targets, |w, target| w.target(target))?;
        self.text(if targets.len() == 1 { ",)" } else { ")" });
        Ok(())
    }

    fn parameters(&mut self, declared: &Macro<'_>) -> Written {
        let without = declared.args.len().saturating_sub(declared.defaults.len());
        self.text("(");
        for (i, parameter) in declared.args.iter().enumerate() {
            self.text(if i == 0 { "" } else { ", " });
            self.target(parameter)?;
            if let Some(default) = i.checked_sub(without).and_then(|i| declared.defaults.get(i)) {
                self.text(" = ");
                self.expression(default)?;
            }
        }
        self.text(")");
        Ok(())
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) -> Written {
        self.text("(");
        self.list(arguments, |w, argument| {
            let (before, value) = match argument {
                CallArg::Pos(value) => ("", value),
                CallArg::Kwarg(name, value) => {
                    w.text(name);
                    ("=", value)
                }
                CallArg::PosSplat(value) => ("*", value),
                CallArg::KwargSplat(value) => ("**", value),
            };
            w.text(before);
            w.expression(value)
        })?;
        self.text(")");
        Ok(())
    }

    fn call(&mut self, call: &Call<'_>) -> Written {
        match &call.expr {
            // A method: what it is called on is read.
            Expr::GetAttr(method) => {
                self.read(&method.expr)?;
                self.text(".");
                self.text(method.name);
            }
            other => self.primary(other)?,
        }
        self.arguments(&call.args)
    }

    /// An expression whose value is read as a whole, and that something can follow.
    fn read(&mut self, expression: &Expr<'_>) -> Written {
        if matches!(expression, Expr::Const(_)) {
            return self.primary(expression);
        }
        self.text("(");
        self.primary(expression)?;
        self.text("|");
        self.text(READ);
        self.text(")");
        Ok(())
    }

    /// The filters of a block, which have nothing before the first.
    fn filters(&mut self, expression: &Expr<'_>) -> Written {
        let Expr::Filter(filter) = expression else {
            return Err("a block is filtered by something else than filters".to_owned());
        };
        if let Some(before) = &filter.expr {
            self.filters(before)?;
            self.text(" | ");
        }
        self.text(filter.name);
        self.arguments(&filter.args)?;
        self.text(" | ");
        self.text(RESULT);
        Ok(())
    }

    /// An expression that something can follow: an attribute, a subscript, a filter.
    fn primary(&mut self, expression: &Expr<'_>) -> Written {
        match expression {
            Expr::Var(variable) => self.text(variable.id),
            Expr::GetAttr(attribute) => {
                self.primary(&attribute.expr)?;
                self.text(".");
                self.text(attribute.name);
            }
            Expr::GetItem(item) => {
                match &item.subscript_expr {
                    Expr::Const(key) if key.value.as_str().is_some() => self.primary(&item.expr)?,
                    _ => self.read(&item.expr)?,
                }
                self.text("[");
                self.expression(&item.subscript_expr)?;
                self.text("]");
            }
            other => {
                self.text("(");
                self.expression(other)?;
                self.text(")");
            }
        }
        Ok(())
    }

    fn expression(&mut self, expression: &Expr<'_>) -> Written {
        match expression {
            Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_) => self.primary(expression)?,
            Expr::Const(constant) => self.constant(&constant.value)?,
            Expr::Slice(slice) => self.through(RESULT, |w| {
                w.read(&slice.expr)?;
                w.text("[");
                for (i, part) in [&slice.start, &slice.stop, &slice.step].into_iter().enumerate() {
                    w.text(if i == 0 { "" } else { ":" });
                    if let Some(part) = part {
                        w.expression(part)?;
                    }
                }
                w.text("]");
                Ok(())
            })?,
            Expr::UnaryOp(unary) => {
                self.text(match unary.op {
                    UnaryOpKind::Not => "not ",
                    UnaryOpKind::Neg => "-",
                });
                self.primary(&unary.expr)?;
            }
            Expr::BinOp(_) => self.operation(expression)?,
            Expr::Compare(compare) => {
                self.read(&compare.expr)?;
                for part in &compare.ops {
                    self.text(match part.op {
                        CompareOpKind::Eq => " == ",
                        CompareOpKind::Ne => " != ",
                        CompareOpKind::Lt => " < ",
                        CompareOpKind::Lte => " <= ",
                        CompareOpKind::Gt => " > ",
                        CompareOpKind::Gte => " >= ",
                        CompareOpKind::In => " in ",
                        CompareOpKind::NotIn => " not in ",
                    });
                    self.read(&part.expr)?;
                }
            }
            Expr::IfExpr(choice) => {
                self.primary(&choice.true_expr)?;
                self.text(" if ");
                self.primary(&choice.test_expr)?;
                if let Some(otherwise) = &choice.false_expr {
                    self.text(" else ");
                    self.primary(otherwise)?;
                }
            }
            Expr::Filter(filter) => {
                let Some(value) = &filter.expr else { return Err("a filter of nothing".to_owned()) };
                self.read(value)?;
                self.text("|");
                self.text(filter.name);
                self.arguments(&filter.args)?;
                self.text("|");
                self.text(RESULT);
            }
            Expr::Test(test) => {
                match KIND_TESTS.contains(&test.name) {
                    true => self.primary(&test.expr)?,
                    false => self.read(&test.expr)?,
                }
                self.text(" is ");
                self.text(test.name);
                if !test.args.is_empty() {
                    self.arguments(&test.args)?;
                }
            }
            Expr::Call(call) => self.through(RESULT, |w| w.call(call))?,
            Expr::List(list) => self.through(RESULT, |w| {
                w.text("[");
                w.list(&list.items, |w, item| w.expression(item))?;
                w.text("]");
                Ok(())
            })?,
            Expr::Tuple(tuple) => self.through(RESULT, |w| {
                w.text("(");
                w.list(&tuple.items, |w, item| w.expression(item))?;
                w.text(if tuple.items.len() == 1 { ",)" } else { ")" });
                Ok(())
            })?,
            Expr::Map(map) => self.through(RESULT, |w| {
                w.text("{");
                let entries: Vec<_> = map.keys.iter().zip(&map.values).collect();
                w.list(&entries, |w, (key, value)| {
                    w.expression(key)?;
                    w.text(": ");
                    w.expression(value)
                })?;
                w.text("}");
                Ok(())
            })?,
        }
        Ok(())
    }

    /// A chain of one operator is written flat, as it was read: it may be long, and the parser's depth is not.
    fn operation(&mut self, expression: &Expr<'_>) -> Written {
        let Expr::BinOp(first) = expression else { return self.expression(expression) };
        let kind = first.op;
        let word = match kind {
            BinOpKind::Eq => " == ",
            BinOpKind::Ne => " != ",
            BinOpKind::Lt => " < ",
            BinOpKind::Lte => " <= ",
            BinOpKind::Gt => " > ",
            BinOpKind::Gte => " >= ",
            BinOpKind::In => " in ",
            BinOpKind::ScAnd => " and ",
            BinOpKind::ScOr => " or ",
            BinOpKind::Add => " + ",
            BinOpKind::Sub => " - ",
            BinOpKind::Mul => " * ",
            BinOpKind::Div => " / ",
            BinOpKind::FloorDiv => " // ",
            BinOpKind::Rem => " % ",
            BinOpKind::Pow => " ** ",
            BinOpKind::Concat => " ~ ",
        };
        let is_metered = matches!(kind, BinOpKind::Add | BinOpKind::Concat);
        let is_chain = is_metered || matches!(kind, BinOpKind::ScAnd | BinOpKind::ScOr);
        let (mut operands, mut left) = (vec![&first.right], &first.left);
        while let Expr::BinOp(next) = left
            && is_chain
            && std::mem::discriminant(&next.op) == std::mem::discriminant(&kind)
        {
            operands.push(&next.right);
            left = &next.left;
        }
        operands.push(left);
        operands.reverse();
        if let (BinOpKind::Mul, [left, right]) = (kind, operands.as_slice()) {
            // A text or a list times a number; the filter knows how long it becomes.
            self.primary(left)?;
            self.text("|");
            self.text(PRODUCT);
            self.text("(");
            self.expression(right)?;
            self.text(")");
            return Ok(());
        }
        for (i, operand) in operands.into_iter().enumerate() {
            self.text(if i == 0 { "" } else { word });
            match is_metered {
                true => self.through(OPERAND, |w| w.expression(operand))?,
                false => self.primary(operand)?,
            }
        }
        Ok(())
    }

    fn constant(&mut self, value: &Value) -> Written {
        match value.as_str() {
            Some(text) => self.string(text),
            None if value.is_none() => self.text("none"),
            None if value.is_integer() || value.kind() == minijinja::value::ValueKind::Bool => {
                let text = value.to_string();
                // The smallest number has no positive twin to put a sign before.
                self.text(&if text.starts_with('-') { format!("({text})") } else { text });
            }
            None => match f64::try_from(value.clone()) {
                Ok(number) if number.is_finite() && number >= 0.0 => self.text(&format!("{number:?}")),
                _ => return Err(format!("the constant {value} is not read")),
            },
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests;
