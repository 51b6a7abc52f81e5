//! Cost units of the interpreter.
//!
//! The interpreter itself counts nothing and stops for nothing. So a parsed expression is rewritten before it is kept: whatever
//! may take time in proportion to a document (an operand that is copied or compared, a turn of a loop, a regular expression) is
//! wrapped in a call of a function of ours, which charges for it and fails once nothing is left. Names that begin with `@` cannot be
//! written in an expression, so nobody else can call or avoid them.
//!
//! Invariant: between two charges the interpreter does no more work than what the first one charged for.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use cel_interpreter::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel_interpreter::common::types::{CelBool, CelBytes, CelInt, CelList, CelMap, CelString, DYN_TYPE};
use cel_interpreter::common::value::{CowVal, Val};
use cel_interpreter::{Env, ExecutionError};
use regex::Regex;

use super::check::text_literal;
use super::regex::{PatternError, compile_regex};

const WEIGH: &str = "@weigh";
const STEP: &str = "@step";
const CONTAINS: &str = "@contains";
const REGEX: &str = "@regex";
const PATTERN: &str = "@pattern";

/// Units for compiling a regular expression at run time, and for each of its bytes.
const PATTERN_UNITS: u64 = 1_000;
const PATTERN_BYTE_UNITS: u64 = 50;
/// Bytes of text that count as one unit.
const TEXT_BYTES_PER_UNIT: usize = 32;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static SPENT: Cell<bool> = const { Cell::new(false) };
    static REGEXES: RefCell<Option<Arc<[Regex]>>> = const { RefCell::new(None) };
}

/// Sets what the coming evaluation on this thread may cost.
pub(super) fn start(units: u64, regexes: &Arc<[Regex]>) {
    LEFT.set(units);
    SPENT.set(false);
    REGEXES.replace(Some(Arc::clone(regexes)));
}

/// What is left of it, and whether it was too little.
pub(super) fn finish() -> (u64, bool) {
    REGEXES.replace(None);
    (LEFT.get(), SPENT.get())
}

/// What is left at this point.
pub(super) fn left() -> u64 {
    LEFT.get()
}

/// Fails once more was charged than there was.
pub(super) fn charge(units: u64) -> Result<(), ExecutionError> {
    match LEFT.get().checked_sub(units) {
        Some(left) if !SPENT.get() => {
            LEFT.set(left);
            Ok(())
        }
        _ => {
            LEFT.set(0);
            SPENT.set(true);
            Err(ExecutionError::function_error("cost", "too much work"))
        }
    }
}

/// Declares the functions that [`rewrite`] puts into expressions.
pub(super) fn declare(env: &mut Env) -> Result<(), cel_interpreter::DeclarationError> {
    let any = || DYN_TYPE;
    env.add_overload(WEIGH, WEIGH, vec![any()], weigh)?;
    env.add_overload(STEP, STEP, vec![any(), any()], step)?;
    env.add_overload(CONTAINS, CONTAINS, vec![any(), any()], contains)?;
    env.add_overload(REGEX, REGEX, vec![any(), any()], matches_literal)?;
    env.add_overload(PATTERN, PATTERN, vec![any(), any()], matches_pattern)
}

/// Wraps what must be charged for, and compiles literal regular expressions into `regexes`.
pub(super) fn rewrite(expr: &mut IdedExpr, regexes: &mut Vec<Regex>) -> Result<(), PatternError> {
    match &mut expr.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => Ok(()),
        Expr::Select(select) => rewrite(&mut select.operand, regexes),
        Expr::List(list) => list.elements.iter_mut().try_for_each(|element| rewrite_weighed(element, regexes)),
        Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
            EntryExpr::MapEntry(entry) => {
                rewrite_weighed(&mut entry.key, regexes)?;
                rewrite_weighed(&mut entry.value, regexes)
            }
            EntryExpr::StructField(_) => Ok(()),
        }),
        Expr::Call(call) => rewrite_call(call, regexes),
        Expr::Comprehension(found) => rewrite_loop(found, regexes),
    }
}

fn rewrite_call(call: &mut CallExpr, regexes: &mut Vec<Regex>) -> Result<(), PatternError> {
    match call.func_name.as_str() {
        // These hand their operands on, or look at a bool or number.
        operators::CONDITIONAL
        | operators::LOGICAL_AND
        | operators::LOGICAL_OR
        | operators::LOGICAL_NOT
        | operators::NEGATE
        | operators::NOT_STRICTLY_FALSE
        | operators::INDEX => call.args.iter_mut().try_for_each(|arg| rewrite(arg, regexes)),
        operators::IN => {
            call.args.iter_mut().try_for_each(|arg| rewrite(arg, regexes))?;
            call.func_name = CONTAINS.to_owned();
            Ok(())
        }
        "matches" => rewrite_matches(call, regexes),
        _ => {
            if let Some(target) = &mut call.target {
                rewrite_weighed(target, regexes)?;
            }
            call.args.iter_mut().try_for_each(|arg| rewrite_weighed(arg, regexes))
        }
    }
}

/// `text.matches(pattern)` and `matches(text, pattern)` become a function of ours.
fn rewrite_matches(call: &mut CallExpr, regexes: &mut Vec<Regex>) -> Result<(), PatternError> {
    if let Some(target) = call.target.take() {
        call.args.insert(0, *target);
    }
    call.args.iter_mut().try_for_each(|arg| rewrite(arg, regexes))?;
    // Any other number of arguments has no overload, which evaluation tells.
    PATTERN.clone_into(&mut call.func_name);
    if let [_, pattern] = call.args.as_mut_slice()
        && let Some(text) = text_literal(pattern)
    {
        let index = regexes.len() as i64;
        regexes.push(compile_regex(text)?);
        pattern.expr = Expr::Literal(LiteralValue::Int(index.into()));
        REGEX.clone_into(&mut call.func_name);
    }
    Ok(())
}

/// A loop clones each item of its range, and evaluates its step for each. The shapes of the steps are kept, for the interpreter
/// recognizes them: `map` and `filter` would copy what they gathered at every turn otherwise.
fn rewrite_loop(found: &mut ComprehensionExpr, regexes: &mut Vec<Regex>) -> Result<(), PatternError> {
    rewrite_weighed(&mut found.iter_range, regexes)?;
    let is_gathered = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if *name == found.accu_var);
    let Expr::Call(step) = &mut found.loop_step.expr else {
        rewrite(&mut found.loop_step, regexes)?;
        wrap_step(&mut found.loop_cond);
        return Ok(());
    };
    match (step.func_name.as_str(), step.args.as_mut_slice()) {
        // `all` and `exists`. An error of the step may be taken back by a later item, so the condition must fail too.
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [gathered, item]) if is_gathered(gathered) => {
            rewrite(item, regexes)?;
            wrap_step(&mut found.loop_cond);
        }
        // `map`.
        (operators::ADD, [gathered, item]) if is_gathered(gathered) => {
            rewrite(item, regexes)?;
            wrap_gathered_step(item);
        }
        // `filter`, `map` with a filter, `exists_one`.
        (operators::CONDITIONAL, [guard, then, _]) => {
            rewrite(guard, regexes)?;
            wrap_step(guard);
            if let Expr::Call(add) = &mut then.expr
                && let [_, item] = add.args.as_mut_slice()
            {
                rewrite(item, regexes)?;
            }
        }
        _ => {
            rewrite(&mut found.loop_step, regexes)?;
            wrap_step(&mut found.loop_cond);
        }
    }
    Ok(())
}

fn wrap_gathered_step(list: &mut IdedExpr) {
    if let Expr::List(list) = &mut list.expr
        && let [item] = list.elements.as_mut_slice()
    {
        wrap_step(item);
    }
}

fn rewrite_weighed(expr: &mut IdedExpr, regexes: &mut Vec<Regex>) -> Result<(), PatternError> {
    rewrite(expr, regexes)?;
    if !matches!(expr.expr, Expr::Literal(_)) {
        wrap(expr, WEIGH, None);
    }
    Ok(())
}

fn wrap_step(expr: &mut IdedExpr) {
    let nodes = count(expr) + 2;
    wrap(expr, STEP, Some(nodes));
}

fn wrap(expr: &mut IdedExpr, function: &str, extra: Option<i64>) {
    let id = expr.id;
    let inner = std::mem::take(expr);
    let mut args = vec![inner];
    args.extend(extra.map(|extra| IdedExpr { id, expr: Expr::Literal(LiteralValue::Int(extra.into())) }));
    *expr = IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }) };
}

/// Nodes of an expression.
pub(super) fn count(expr: &IdedExpr) -> i64 {
    1 + match &expr.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) | Expr::Struct(_) => 0,
        Expr::Select(select) => count(&select.operand),
        Expr::List(list) => list.elements.iter().map(count).sum(),
        Expr::Map(map) => map
            .entries
            .iter()
            .map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => count(&entry.key) + count(&entry.value),
                EntryExpr::StructField(_) => 0,
            })
            .sum(),
        Expr::Call(call) => call.target.as_deref().map_or(0, count) + call.args.iter().map(count).sum::<i64>(),
        Expr::Comprehension(found) => {
            count(&found.iter_range) + count(&found.loop_cond) + count(&found.loop_step) + count(&found.result)
        }
    }
}

/// Units of copying or comparing a value.
fn weight(value: &dyn Val) -> u64 {
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        return 1 + (text.inner().len() / TEXT_BYTES_PER_UNIT) as u64;
    }
    if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        return 1 + (bytes.inner().len() / TEXT_BYTES_PER_UNIT) as u64;
    }
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        return 1 + list.inner().iter().map(|item| weight(item.as_ref())).sum::<u64>();
    }
    if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        return 1 + map.inner().iter().map(|(key, item)| weight(key.inner()) + weight(item.as_ref())).sum::<u64>();
    }
    1
}

fn weigh<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value] = arguments(args)?;
    charge(weight(value.as_ref()))?;
    Ok(value)
}

fn step<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, units] = arguments(args)?;
    let units = units.downcast_ref::<CelInt>().map_or(1, |units| units.inner().unsigned_abs());
    charge(units + weight(value.as_ref()))?;
    Ok(value)
}

/// `in`: every item of a list may be compared with the whole value.
fn contains<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, container] = arguments(args)?;
    let items = match container.downcast_ref::<CelList<'_>>() {
        Some(list) => list.inner().len() as u64,
        None => 1,
    };
    charge((items + 1).saturating_mul(weight(value.as_ref())))?;
    let found = container
        .as_container()
        .ok_or_else(|| ExecutionError::no_such_overload(operators::IN, vec![container.get_type().name().to_owned()]))?;
    Ok(CowVal::owned(CelBool::from(found.contains(value.as_ref())?)))
}

fn matches_literal<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, index] = arguments(args)?;
    let missing = || ExecutionError::function_error("matches", "expected strings");
    let text = value.downcast_ref::<CelString<'_>>().ok_or_else(missing)?.inner();
    let index = index.downcast_ref::<CelInt>().ok_or_else(missing)?;
    charge(regex_units(text))?;
    REGEXES.with_borrow(|regexes| {
        let regexes = regexes.as_deref().unwrap_or(&[]);
        let regex = usize::try_from(*index.inner()).ok().and_then(|index| regexes.get(index)).ok_or_else(missing)?;
        Ok(CowVal::owned(CelBool::from(regex.is_match(text))))
    })
}

fn matches_pattern<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [value, pattern] = arguments(args)?;
    let missing = || ExecutionError::function_error("matches", "expected strings");
    let text = value.downcast_ref::<CelString<'_>>().ok_or_else(missing)?.inner();
    let pattern = pattern.downcast_ref::<CelString<'_>>().ok_or_else(missing)?.inner();
    charge(PATTERN_UNITS + PATTERN_BYTE_UNITS * pattern.len() as u64 + regex_units(text))?;
    let regex = compile_regex(pattern).map_err(|error| ExecutionError::function_error("matches", error))?;
    Ok(CowVal::owned(CelBool::from(regex.is_match(text))))
}

/// Units of searching a text: by the byte, for each may cost a step of the automaton.
pub(super) fn regex_units(text: &str) -> u64 {
    8 + (text.len() / 4) as u64
}

fn arguments<'b, 'v, const N: usize>(args: Vec<CowVal<'b, 'v>>) -> Result<[CowVal<'b, 'v>; N], ExecutionError> {
    let actual = args.len();
    args.try_into().map_err(|_| ExecutionError::invalid_argument_count(N, actual))
}
