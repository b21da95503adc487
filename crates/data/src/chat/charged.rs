//! A template written out again so that everything it makes is charged for.
//!
//! The library counts steps, but one step may make a text of any length: a text added to itself forty times fills any
//! memory. So each expression that makes a value goes through a function that charges its length, and text between tags is
//! written as an expression, which the formatter charges. White space has been cut by the first reading, and every part
//! stays on its line.

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOpKind, Expr, Macro, Stmt, UnaryOpKind};
use minijinja::machinery::{Span, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// The function that charges.
pub(super) const CHARGE: &str = "charged__";

/// The function that charges for a comparison: all that is in the value may be looked at.
pub(super) const COMPARED: &str = "compared__";

/// Filters that compare what they are given.
const COMPARING: [&str; 6] = ["unique", "sort", "min", "max", "groupby", "dictsort"];

/// The template with charges.
pub(super) fn charged(source: &str, name: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let Stmt::Template(template) = parse(source, name, syntax)? else {
        return Err(refused("a template", Span::default()));
    };
    let mut writer = Writer {
        out: String::with_capacity(2 * source.len()),
        line: 1,
    };
    writer.body(&template.children)?;
    Ok(writer.out)
}

fn refused(what: &str, span: Span) -> Error {
    let message = format!("line {}: {what} cannot stand in a chat template", span.start_line);
    Error::new(ErrorKind::SyntaxError, message)
}

struct Writer {
    out: String,
    line: u16,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Goes on to the line of the template. Only inside of tags, where lines mean nothing.
    fn at(&mut self, span: Span) {
        while self.line < span.start_line {
            self.out.push('\n');
            self.line += 1;
        }
    }

    fn open(&mut self, word: &str, span: Span) {
        self.put("{%");
        self.at(span);
        self.put(word);
        self.put(" ");
    }

    fn tag(&mut self, word: &str) {
        self.put("{%");
        self.put(word);
        self.put("%}");
    }

    fn body(&mut self, body: &[Stmt<'_>]) -> Result<(), Error> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt<'_>) -> Result<(), Error> {
        match stmt {
            Stmt::Template(inner) => self.body(&inner.children)?,
            Stmt::EmitRaw(raw) => {
                self.put("{{");
                self.text(raw.raw);
                self.put("}}");
            }
            Stmt::EmitExpr(emit) => {
                self.put("{{");
                self.expr(&emit.expr)?;
                self.put("}}");
            }
            Stmt::ForLoop(each) => {
                self.open("for", each.span());
                self.target(&each.target, true)?;
                self.put(" in ");
                self.expr(&each.iter)?;
                if let Some(filter) = &each.filter_expr {
                    self.put(" if ");
                    self.expr(filter)?;
                }
                self.put(if each.recursive { " recursive%}" } else { "%}" });
                self.body(&each.body)?;
                if !each.else_body.is_empty() {
                    self.tag("else");
                    self.body(&each.else_body)?;
                }
                self.tag("endfor");
            }
            Stmt::IfCond(first) => {
                self.open("if", first.span());
                let mut branch = first;
                loop {
                    self.expr(&branch.expr)?;
                    self.put("%}");
                    self.body(&branch.true_body)?;
                    match branch.false_body.as_slice() {
                        [] => break,
                        [Stmt::IfCond(next)] => {
                            self.open("elif", next.span());
                            branch = next;
                        }
                        other => {
                            self.tag("else");
                            self.body(other)?;
                            break;
                        }
                    }
                }
                self.tag("endif");
            }
            Stmt::WithBlock(with) => {
                self.open("with", with.span());
                for (at, (target, value)) in with.assignments.iter().enumerate() {
                    self.put(if at > 0 { ", " } else { "" });
                    self.target(target, false)?;
                    self.put(" = ");
                    self.expr(value)?;
                }
                self.put("%}");
                self.body(&with.body)?;
                self.tag("endwith");
            }
            Stmt::Set(set) => {
                self.open("set", set.span());
                self.target(&set.target, true)?;
                self.put(" = ");
                self.expr(&set.expr)?;
                self.put("%}");
            }
            Stmt::SetBlock(set) => {
                self.open("set", set.span());
                self.target(&set.target, true)?;
                if let Some(filter) = &set.filter {
                    self.put(" | ");
                    self.filters(filter)?;
                }
                self.put("%}");
                self.body(&set.body)?;
                self.tag("endset");
            }
            Stmt::FilterBlock(block) => {
                self.open("filter", block.span());
                self.filters(&block.filter)?;
                self.put("%}");
                self.body(&block.body)?;
                self.tag("endfilter");
            }
            Stmt::Macro(found) => {
                self.open("macro", found.span());
                self.put(found.name);
                self.parameters(found)?;
                self.put("%}");
                self.body(&found.body)?;
                self.tag("endmacro");
            }
            Stmt::CallBlock(block) => {
                self.open("call", block.span());
                if !block.macro_decl.args.is_empty() {
                    self.parameters(&block.macro_decl)?;
                }
                self.put(" ");
                self.callee(&block.call.expr)?;
                self.arguments(&block.call.args)?;
                self.put("%}");
                self.body(&block.macro_decl.body)?;
                self.tag("endcall");
            }
            Stmt::Do(call) => {
                self.open("do", call.span());
                self.callee(&call.call.expr)?;
                self.arguments(&call.call.args)?;
                self.put("%}");
            }
            Stmt::Continue(_) => self.tag("continue"),
            Stmt::Break(_) => self.tag("break"),
            Stmt::AutoEscape(found) => return Err(refused("`autoescape`", found.span())),
            Stmt::Block(found) => return Err(refused("`block`", found.span())),
            Stmt::Import(found) => return Err(refused("`import`", found.span())),
            Stmt::FromImport(found) => return Err(refused("`import`", found.span())),
            Stmt::Extends(found) => return Err(refused("`extends`", found.span())),
            Stmt::Include(found) => return Err(refused("`include`", found.span())),
        }
        Ok(())
    }

    /// What is assigned to.
    fn target(&mut self, target: &Expr<'_>, outermost: bool) -> Result<(), Error> {
        match target {
            Expr::Var(var) => self.put(var.id),
            Expr::GetAttr(get) => {
                self.target(&get.expr, false)?;
                self.put(".");
                self.put(get.name);
            }
            Expr::List(list) => {
                self.put(if outermost { "" } else { "(" });
                for (at, item) in list.items.iter().enumerate() {
                    self.put(if at > 0 { ", " } else { "" });
                    self.target(item, false)?;
                }
                self.put(if list.items.len() == 1 { "," } else { "" });
                self.put(if outermost { "" } else { ")" });
            }
            other => return Err(refused("such an assignment", other.span())),
        }
        Ok(())
    }

    fn parameters(&mut self, found: &Macro<'_>) -> Result<(), Error> {
        self.put("(");
        let without = found.args.len().saturating_sub(found.defaults.len());
        for (at, arg) in found.args.iter().enumerate() {
            self.put(if at > 0 { ", " } else { "" });
            self.target(arg, false)?;
            if let Some(default) = at.checked_sub(without).and_then(|at| found.defaults.get(at)) {
                self.put("=");
                self.expr(default)?;
            }
        }
        self.put(")");
        Ok(())
    }

    fn arguments(&mut self, args: &[CallArg<'_>]) -> Result<(), Error> {
        self.put("(");
        for (at, arg) in args.iter().enumerate() {
            self.put(if at > 0 { ", " } else { "" });
            let expr = match arg {
                CallArg::Pos(expr) => expr,
                CallArg::Kwarg(name, expr) => {
                    self.put(name);
                    self.put("=");
                    expr
                }
                CallArg::PosSplat(expr) => {
                    self.put("*");
                    expr
                }
                CallArg::KwargSplat(expr) => {
                    self.put("**");
                    expr
                }
            };
            self.expr(expr)?;
        }
        self.put(")");
        Ok(())
    }

    /// What is called: a name, a method of something, or a value.
    fn callee(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        match expr {
            Expr::Var(var) => {
                self.at(var.span());
                self.put(var.id);
                Ok(())
            }
            Expr::GetAttr(get) => self.attribute(&get.expr, get.name),
            other => self.within(other),
        }
    }

    fn attribute(&mut self, expr: &Expr<'_>, name: &str) -> Result<(), Error> {
        self.within(expr)?;
        self.put(".");
        self.put(name);
        Ok(())
    }

    /// An operand of a comparison; a constant is as short as the template.
    fn compared(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        if matches!(expr, Expr::Const(_)) {
            return self.expr(expr);
        }
        self.put(COMPARED);
        self.put("(");
        self.expr(expr)?;
        self.put(")");
        Ok(())
    }

    /// An expression in front of an attribute, an index or a call.
    fn within(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        let name = matches!(expr, Expr::Var(_) | Expr::GetAttr(_) | Expr::GetItem(_));
        self.put(if name { "" } else { "(" });
        self.expr(expr)?;
        self.put(if name { "" } else { ")" });
        Ok(())
    }

    /// The filters of a block, which have the block in front of them.
    fn filters(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        let Expr::Filter(filter) = expr else {
            return Err(refused("such a filter", expr.span()));
        };
        if let Some(before) = &filter.expr {
            self.filters(before)?;
            self.put(" | ");
        }
        self.put(filter.name);
        if filter.args.is_empty() {
            return Ok(());
        }
        self.arguments(&filter.args)
    }

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        self.at(expr.span());
        match expr {
            Expr::Var(var) => self.put(var.id),
            Expr::Const(found) => self.constant(&found.value, expr.span())?,
            Expr::Slice(slice) => {
                self.put(CHARGE);
                self.put("(");
                self.within(&slice.expr)?;
                self.put("[");
                for (at, part) in [&slice.start, &slice.stop, &slice.step].into_iter().enumerate() {
                    self.put(if at > 0 { ":" } else { "" });
                    if let Some(part) = part {
                        self.expr(part)?;
                    }
                }
                self.put("])");
            }
            Expr::UnaryOp(op) => {
                self.put(match op.op {
                    UnaryOpKind::Not => "(not ",
                    UnaryOpKind::Neg => "(-",
                });
                self.expr(&op.expr)?;
                self.put(")");
            }
            Expr::BinOp(op) if compares(op.op) => {
                self.put("(");
                self.compared(&op.left)?;
                self.put(operator(op.op));
                self.compared(&op.right)?;
                self.put(")");
            }
            Expr::BinOp(op) => {
                let makes = matches!(
                    op.op,
                    BinOpKind::Add | BinOpKind::Mul | BinOpKind::Pow | BinOpKind::Concat
                );
                self.put(if makes { CHARGE } else { "" });
                self.put("(");
                self.chain(expr, op.op)?;
                self.put(")");
            }
            Expr::Compare(compare) => {
                self.put("(");
                self.compared(&compare.expr)?;
                for op in &compare.ops {
                    self.put(compared(op.op));
                    self.compared(&op.expr)?;
                }
                self.put(")");
            }
            Expr::IfExpr(choice) => {
                self.put("(");
                self.expr(&choice.true_expr)?;
                self.put(" if ");
                self.expr(&choice.test_expr)?;
                if let Some(other) = &choice.false_expr {
                    self.put(" else ");
                    self.expr(other)?;
                }
                self.put(")");
            }
            Expr::Filter(filter) => {
                let Some(before) = &filter.expr else {
                    return Err(refused("a filter of nothing", filter.span()));
                };
                self.put(CHARGE);
                self.put("(");
                if COMPARING.contains(&filter.name) {
                    self.compared(before)?;
                } else {
                    self.within(before)?;
                }
                self.put(" | ");
                self.put(filter.name);
                if !filter.args.is_empty() {
                    self.arguments(&filter.args)?;
                }
                self.put(")");
            }
            Expr::Test(test) => {
                self.put("(");
                self.within(&test.expr)?;
                self.put(" is ");
                self.put(test.name);
                if !test.args.is_empty() {
                    self.arguments(&test.args)?;
                }
                self.put(")");
            }
            Expr::GetAttr(get) => self.attribute(&get.expr, get.name)?,
            Expr::GetItem(get) => {
                self.within(&get.expr)?;
                self.put("[");
                self.expr(&get.subscript_expr)?;
                self.put("]");
            }
            Expr::Call(call) => {
                self.put(CHARGE);
                self.put("(");
                self.callee(&call.expr)?;
                self.arguments(&call.args)?;
                self.put(")");
            }
            Expr::List(list) => self.items('[', &list.items, "]")?,
            Expr::Tuple(tuple) => self.items('(', &tuple.items, if tuple.items.len() == 1 { ",)" } else { ")" })?,
            Expr::Map(map) => {
                self.put("{");
                for (at, (key, value)) in map.keys.iter().zip(&map.values).enumerate() {
                    self.put(if at > 0 { ", " } else { "" });
                    self.compared(key)?;
                    self.put(": ");
                    self.expr(value)?;
                }
                // A space, as two closing braces would be the end of the tag.
                self.put(" }");
            }
        }
        Ok(())
    }

    /// Operands of the same operator, without nesting those that come first.
    fn chain(&mut self, expr: &Expr<'_>, kind: BinOpKind) -> Result<(), Error> {
        let same = |op: BinOpKind| operator(op) == operator(kind) && !matches!(op, BinOpKind::Pow);
        match expr {
            Expr::BinOp(op) if operator(op.op) == operator(kind) => {
                match &op.left {
                    Expr::BinOp(left) if same(left.op) && chains(left.op) => self.chain(&op.left, kind)?,
                    left => self.expr(left)?,
                }
                self.put(operator(op.op));
                self.expr(&op.right)
            }
            other => self.expr(other),
        }
    }

    fn items(&mut self, open: char, items: &[Expr<'_>], close: &str) -> Result<(), Error> {
        self.out.push(open);
        for (at, item) in items.iter().enumerate() {
            self.put(if at > 0 { ", " } else { "" });
            self.expr(item)?;
        }
        self.put(close);
        Ok(())
    }

    fn constant(&mut self, value: &Value, span: Span) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::None => self.put("none"),
            ValueKind::Bool => self.put(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.put(&format!("({value})")),
            _ => return Err(refused("such a constant", span)),
        }
        Ok(())
    }

    /// A text as a constant.
    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.put("\\\""),
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                '\r' => self.put("\\r"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn compares(op: BinOpKind) -> bool {
    matches!(
        op,
        BinOpKind::Eq | BinOpKind::Ne | BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte | BinOpKind::In
    )
}

/// Whether `a op b op c` is `(a op b) op c`.
fn chains(op: BinOpKind) -> bool {
    matches!(
        op,
        BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Add | BinOpKind::Sub | BinOpKind::Concat
    )
}

fn operator(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Eq => " == ",
        BinOpKind::Ne => " != ",
        BinOpKind::Lt => " < ",
        BinOpKind::Lte => " <= ",
        BinOpKind::Gt => " > ",
        BinOpKind::Gte => " >= ",
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
        BinOpKind::In => " in ",
    }
}

fn compared(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => " == ",
        CompareOpKind::Ne => " != ",
        CompareOpKind::Lt => " < ",
        CompareOpKind::Lte => " <= ",
        CompareOpKind::Gt => " > ",
        CompareOpKind::Gte => " >= ",
        CompareOpKind::In => " in ",
        CompareOpKind::NotIn => " not in ",
    }
}
