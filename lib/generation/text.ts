import type { Model } from '../model/model.js';

/**
 * How a model's completions read. The token that ended one (any of the model's EOS) is no part of its text, and neither is
 * that token spelled out right in front of it: models trained on text with written-out markers say `<|end|>` in ordinary
 * tokens and then the token itself. Where no EOS came, the text is all that was said. Ids keep everything.
 */
export class Wording {
  readonly #tokenizer: Model['tokenizer'];
  readonly #ends: ReadonlySet<number>;
  /** What special tokens that end a completion look like in text. */
  readonly spellings: readonly string[];

  constructor({ tokenizer, config }: { tokenizer: Model['tokenizer']; config: Pick<Model['config'], 'eosIds'> }) {
    this.#tokenizer = tokenizer;
    this.#ends = new Set(config.eosIds);
    const special = config.eosIds.filter((id) => tokenizer.decode([id], { skipSpecial: true }) === '');
    this.spellings = special.map((id) => tokenizer.decode([id])).filter((text) => text !== '');
  }

  /** The model closed it. */
  ended(ids: ArrayLike<number>): boolean {
    return ids.length > 0 && this.#ends.has(ids[ids.length - 1]);
  }

  /** All that was said, a spelled-out ending included: without special tokens and the token that ended it. */
  said(ids: ArrayLike<number>): string {
    const words = this.ended(ids) ? Array.from(ids).slice(0, -1) : ids;
    return this.#tokenizer.decode(words, { skipSpecial: true });
  }

  /** The completion's text. */
  text(ids: ArrayLike<number>, said = this.said(ids)): string {
    const spelled = this.ended(ids) ? this.spellings.find((spelling) => said.endsWith(spelling)) : undefined;
    return spelled === undefined ? said : said.slice(0, -spelled.length);
  }
}

/** The text of one completion; see `Wording`. */
export const completionText = (model: Pick<Model, 'tokenizer' | 'config'>, ids: ArrayLike<number>): string =>
  new Wording(model).text(ids);
