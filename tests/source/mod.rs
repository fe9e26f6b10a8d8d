//! Rust source as tokens, for the tests that look at which paths a file names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path of names. The file of a folder's `mod.rs` has the folder's path, and `lib.rs` the empty one.
pub(crate) type Module = Vec<String>;

/// A path in a file.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) path: Module,
    /// The name that a `use` gives to it, `*` for all names below the path.
    pub(crate) name: String,
    /// Whether it is in a `pub use`.
    pub(crate) re_export: bool,
}

impl Use {
    /// The path from the root of the crate, if it stands in the file of `module`.
    pub(crate) fn absolute(&self, module: &[String]) -> Module {
        let mut absolute = if self.path[0] == "crate" { Module::new() } else { module.to_vec() };
        for part in &self.path {
            match &**part {
                "crate" | "self" | "*" => {}
                "super" => drop(absolute.pop()),
                _ => absolute.push(part.clone()),
            }
        }
        absolute
    }
}

/// The files below a folder of this package, as tokens.
pub(crate) fn files(folder: &str) -> BTreeMap<Module, Vec<String>> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    walk(&folder, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let module = |path: &Path| {
        let path = path.strip_prefix(&folder).unwrap().with_extension("");
        let mut module: Module =
            path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        module
    };
    paths.iter().map(|path| (module(path), tokens(&fs::read_to_string(path).unwrap()))).collect()
}

/// The words and marks of `text`, without comments, the contents of strings and `#[cfg(test)]` items.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    flatten(text.parse().unwrap(), &mut tokens);
    tokens
}

fn flatten(stream: TokenStream, into: &mut Vec<String>) {
    let mut rest = stream.into_iter().peekable();
    while let Some(token) = rest.next() {
        match token {
            TokenTree::Punct(mark)
                if mark.as_char() == '#' && rest.peek().is_some_and(is_cfg_test) =>
            {
                let ends = |token: &TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(mark) => mark.as_char() == ';',
                    _ => false,
                };
                rest.by_ref().find(ends);
            }
            TokenTree::Punct(mark) => match into.last_mut() {
                Some(last) if mark.as_char() == ':' && last == ":" => last.push(':'),
                _ => into.push(mark.to_string()),
            },
            TokenTree::Ident(word) => into.push(word.to_string()),
            TokenTree::Literal(_) => {}
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    _ => ("(", ")"),
                };
                into.push(open.to_owned());
                flatten(group.stream(), into);
                into.push(close.to_owned());
            }
        }
    }
}

/// Whether this is the `[cfg(test)]` or the `[cfg(all(test, …))]` of an attribute.
fn is_cfg_test(attribute: &TokenTree) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text.starts_with("[cfg(test") || text.starts_with("[cfg(all(test")
}

/// Every path that begins with one of `roots`, with the groups of `use` taken apart.
pub(crate) fn uses(tokens: &[String], roots: &[&str]) -> Vec<Use> {
    fn tree(tokens: &[String], mut at: usize, mut path: Module, into: &mut Vec<Use>) -> usize {
        while tokens.get(at).is_some_and(|token| token == "::") {
            match &*tokens[at + 1] {
                "{" => {
                    at += 2;
                    while tokens[at] != "}" {
                        let mut inner = path.clone();
                        inner.push(tokens[at].clone());
                        at = tree(tokens, at + 1, inner, into);
                        at += usize::from(tokens[at] == ",");
                    }
                    return at + 1;
                }
                "<" => break,
                part => path.push(part.to_owned()),
            }
            at += 2;
        }
        let renamed = tokens.get(at).is_some_and(|token| token == "as");
        if path.len() > 1 {
            path.pop_if(|last| last == "self");
        }
        let name = if renamed { &tokens[at + 1] } else { path.last().unwrap() }.clone();
        into.push(Use { path, name, re_export: false });
        at + 2 * usize::from(renamed)
    }
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = roots.contains(&&*tokens[at]) && (at == 0 || tokens[at - 1] != "::");
        if begins && tokens.get(at + 1).is_some_and(|token| token == "::") {
            let before = found.len();
            let re_export =
                at > 1 && tokens[at - 1] == "use" && matches!(&*tokens[at - 2], "pub" | ")");
            at = tree(tokens, at + 1, vec![tokens[at].clone()], &mut found);
            found[before..].iter_mut().for_each(|used| used.re_export = re_export);
        } else {
            at += 1;
        }
    }
    found
}
