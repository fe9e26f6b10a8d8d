//! The crate's source, read as text: its files without their tests, their words and their paths.

use std::fs;
use std::path::Path;

#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// From `src`, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every file of the crate that is no test.
pub(crate) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources);
    let tests: Vec<_> = sources.iter().flat_map(test_modules).collect();
    sources.retain(|source| {
        let module = module(&source.path);
        !tests.iter().any(|test| module.starts_with(test))
    });
    assert!(sources.len() > 30, "only {} files in {}", sources.len(), root.display());
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn collect(root: &Path, directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("src") {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let parts: Vec<_> =
                path.strip_prefix(root).unwrap().iter().map(|p| p.to_str().unwrap()).collect();
            let text = fs::read_to_string(&path).expect("a source file");
            sources.push(Source { path: parts.join("/"), text });
        }
    }
}

/// The files of a source that are compiled for tests only, as modules.
pub(crate) fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let lines: Vec<_> = source.text.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter(|pair| is_for_tests(pair[0]));
    pairs
        .filter_map(|pair| {
            let name = pair[1].strip_prefix("mod ")?.strip_suffix(';')?;
            Some(module(&source.path).into_iter().chain([name.to_owned()]).collect())
        })
        .collect()
}

fn is_for_tests(line: &str) -> bool {
    line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test,")
}

/// `wire` for `wire/exec.rs`, `retry` for `retry.rs`.
pub(crate) fn room(source: &Source) -> &str {
    source.path.split(['/', '.']).next().unwrap()
}

/// `["connection", "pool"]` for `connection/pool.rs`.
fn module(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| *part != "lib").map(str::to_owned).collect()
}

/// The text up to the first item that is compiled for tests only.
fn without_tests(text: &str) -> &str {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if is_for_tests(line.trim_start()) {
            let item = text[at + line.len()..].trim_start();
            if item.starts_with("mod ") && !item.lines().next().unwrap_or("").ends_with(';') {
                return &text[..at];
            }
        }
        at += line.len();
    }
    text
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Word(String),
    /// `::`
    Colons,
    Sign(char),
}

/// The text without comments, strings, characters and lifetimes, as words and signs.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let letters: Vec<char> = text.chars().collect();
    let at = |index: usize| letters.get(index).copied().unwrap_or('\0');
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < letters.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < letters.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= letters.len() {
                        break;
                    }
                }
            }
            ('"', _) => i = behind_string(&letters, i),
            ('\'', '\\') => {
                i += 3;
                while i < letters.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            // A lifetime: its name goes with it.
            ('\'', _) => {
                i += 1;
                while is_word(at(i)) {
                    i += 1;
                }
            }
            (':', ':') => {
                tokens.push(Token::Colons);
                i += 2;
            }
            (letter, _) if is_word(letter) => {
                let begin = i;
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = letters[begin..i].iter().collect();
                let raw = ["r", "br", "cr"].contains(&word.as_str());
                match at(i) {
                    '"' if raw => i = behind_raw_string(&letters, i),
                    '#' if raw && matches!(at(i + 1), '#' | '"') => {
                        i = behind_raw_string(&letters, i);
                    }
                    '"' if ["b", "c"].contains(&word.as_str()) => i = behind_string(&letters, i),
                    '\'' if word == "b" => {}
                    _ => tokens.push(Token::Word(word)),
                }
            }
            (letter, _) if letter.is_whitespace() => i += 1,
            (letter, _) => {
                tokens.push(Token::Sign(letter));
                i += 1;
            }
        }
    }
    tokens
}

fn behind_string(letters: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < letters.len() && letters[i] != '"' {
        i += if letters[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn behind_raw_string(letters: &[char], from: usize) -> usize {
    let hashes = letters[from..].iter().take_while(|letter| **letter == '#').count();
    let mut i = from + hashes + 1;
    while i < letters.len() {
        let end = letters[i] == '"'
            && letters[i + 1..].iter().take_while(|letter| **letter == '#').count() >= hashes;
        if end {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

pub(crate) fn words(tokens: &[Token]) -> impl Iterator<Item = &str> {
    tokens.iter().filter_map(|token| match token {
        Token::Word(word) => Some(word.as_str()),
        _ => None,
    })
}

/// Every path of the file's code that can leave the file, from its root: `super` and `self` are
/// resolved, groups taken apart.
pub(crate) fn paths(source: &Source) -> Vec<String> {
    let tokens = tokens(without_tests(&source.text));
    let mut module = module(&source.path);
    // How deep in braces each inline module was opened.
    let mut inline = Vec::new();
    let mut depth = 0_usize;
    let mut paths = Vec::new();
    for at in 0..tokens.len() {
        match &tokens[at] {
            Token::Sign('{') => {
                if let (Some(Token::Word(name)), Some(Token::Word(keyword))) =
                    (at.checked_sub(1).map(|i| &tokens[i]), at.checked_sub(2).map(|i| &tokens[i]))
                    && keyword == "mod"
                {
                    module.push(name.clone());
                    inline.push(depth);
                }
                depth += 1;
            }
            Token::Sign('}') => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            Token::Word(root) => {
                let roots = ["crate", "super", "self", "std", "core", "redis", "r2d2"];
                let follows = at > 0
                    && (tokens[at - 1] == Token::Colons && at > 1 && is_path_word(&tokens[at - 2]));
                let used = at > 0 && tokens[at - 1] == Token::Word("use".to_owned());
                let is_path = tokens.get(at + 1) == Some(&Token::Colons) || used;
                if roots.contains(&root.as_str()) && is_path && !follows {
                    let mut found = Vec::new();
                    tree(&tokens, at, &[], &mut found);
                    paths.extend(found.iter().filter_map(|path| from_root(path, &module)));
                }
            }
            _ => {}
        }
    }
    paths
}

fn is_path_word(token: &Token) -> bool {
    matches!(token, Token::Word(word) if word != "use")
}

/// Reads a path or a group of paths at `at` and returns where it ends.
fn tree(tokens: &[Token], mut at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) => path.push(word.clone()),
            Some(Token::Sign('*')) => path.push("*".to_owned()),
            Some(Token::Sign('{')) => {
                at += 1;
                while at < tokens.len() && tokens[at] != Token::Sign('}') {
                    // Behind a path: a comma, or `as` and a name.
                    at = match tokens[at] {
                        Token::Word(_) | Token::Sign('{' | '*') => tree(tokens, at, &path, found),
                        _ => at + 1,
                    };
                    if tokens.get(at) == Some(&Token::Word("as".to_owned())) {
                        at += 2;
                    }
                }
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&Token::Colons) {
            break;
        }
        at += 1;
    }
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    found.push(path);
    at
}

/// `crate::connection::link` for `super::link` in `connection::pool`.
fn from_root(path: &[String], module: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let mut base = module.to_vec();
    let rest = match first.as_str() {
        "crate" => {
            base.clear();
            rest
        }
        "super" | "self" => {
            let climbs = path.iter().take_while(|part| *part == "super" || *part == "self");
            let climbs = climbs.count();
            for _ in path[..climbs].iter().filter(|part| *part == "super") {
                base.pop();
            }
            &path[climbs..]
        }
        _ => return Some(path.join("::")),
    };
    let full: Vec<_> = ["crate".to_owned()].into_iter().chain(base).chain(rest.to_vec()).collect();
    Some(full.join("::"))
}
