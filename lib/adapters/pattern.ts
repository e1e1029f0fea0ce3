import { runInNewContext } from 'node:vm';
import { PluralignError } from '../native/errors.js';

const matchMilliseconds = 1000;

/**
 * A pattern of Python's `re` as a JavaScript one. Module names hold no line breaks, so that `$`, `\Z` and the end of the
 * string are one. What JavaScript would read differently (inline flags, atomic and conditional groups) is refused.
 */
function translate(pattern: string, where: string): string {
  const refuse = (what: string) => {
    throw new PluralignError(
      'BAD_CONFIG',
      `${where}: cannot read the regular expression ${JSON.stringify(pattern)}: ${what}. Use plain groups and classes.`,
    );
  };
  let out = '';
  let inClass = false;
  for (let i = 0; i < pattern.length; i++) {
    const c = pattern[i];
    const rest = pattern.slice(i);
    if (c === '\\') {
      const next = pattern[++i] ?? refuse('it ends in a backslash');
      if (!inClass && next === 'A') out += '^';
      else if (!inClass && (next === 'Z' || next === 'z')) out += '$';
      else if (/[A-Za-z]/.test(next) && !/[dDsSwWbBfnrtvxu]/.test(next)) refuse(`\\${next} is not supported`);
      else out += c + next;
    } else if (inClass) {
      if (c === ']') inClass = false;
      out += c;
    } else if (c === '[') {
      inClass = true;
      // In Python a bracket that comes first in a class is a literal; in JavaScript it closes an empty class.
      const open = /^\[\^?\]?/.exec(rest)![0];
      out += open.endsWith(']') ? `${open.slice(0, -1)}\\]` : open;
      i += open.length - 1;
    } else if (rest.startsWith('(?')) {
      const named = /^\(\?P<(\w+)>/.exec(rest);
      const back = /^\(\?P=(\w+)\)/.exec(rest);
      const plain = /^\(\?(?::|=|!|<=|<!)/.exec(rest);
      if (named) out += `(?<${named[1]}>`;
      else if (back) out += `\\k<${back[1]}>`;
      else if (plain) out += plain[0];
      else refuse(`the group ${JSON.stringify(rest.slice(0, 4))} is not supported`);
      i += (named ?? back ?? plain)![0].length - 1;
    } else {
      const repeat = /^\{,(\d*)\}/.exec(rest);
      out += repeat ? `{0,${repeat[1]}}` : c;
      if (repeat) i += repeat[0].length - 1;
    }
  }
  try {
    new RegExp(out);
  } catch (error) {
    refuse((error as Error).message);
  }
  return out;
}

function test(source: string, names: readonly string[], pattern: string, where: string): boolean[] {
  try {
    // In a context of its own because only there a match has a time limit: a pattern from a file must not hang us.
    const script = 'const re = new RegExp(source); names.map((name) => re.test(name))';
    return Array.from(runInNewContext(script, { source, names }, { timeout: matchMilliseconds }) as boolean[]);
  } catch (error) {
    if ((error as { code?: string }).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new PluralignError(
      'BAD_CONFIG',
      `${where}: matching ${JSON.stringify(pattern)} takes over ${matchMilliseconds} ms; simplify its nested repeats.`,
    );
  }
}

/** For each name whether Python's `re.fullmatch(pattern, name)` finds it. `where` names the setting in errors. */
export function fullMatches(pattern: string, names: readonly string[], where: string): boolean[] {
  return test(`^(?:${translate(pattern, where)})$`, names, pattern, where);
}

/** For each name whether it matches a key of `rank_pattern` or `alpha_pattern`: `re.match(rf"(.*\.)?({key})$", name)`. */
export function keyMatches(key: string, names: readonly string[], where: string): boolean[] {
  return test(`^(.*\\.)?(${translate(key, where)})$`, names, key, where);
}

/** For each name whether Python's `re.match(pattern, name)` finds it at the start. */
export function prefixMatches(pattern: string, names: readonly string[], where: string): boolean[] {
  return test(`^(?:${translate(pattern, where)})`, names, pattern, where);
}
