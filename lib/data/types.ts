/** A turn of a conversation. */
export interface Message {
  role: string;
  content: string;
}

/** Plain text, or a conversation that goes through the model's chat template. */
export type Text = string | Message[];

/** Where a row came from, for messages: file and 1-based line (or record) number. */
export interface Origin {
  file: string;
  line: number;
}

interface RowBase {
  /** Index in the data set after reading; stable under shuffling and splits. */
  index: number;
  origin: Origin;
  /** Who chose. */
  annotator?: string;
  /** A known group of annotators. */
  group?: string;
  /** Weight of the row in every loss; 1 unless the data says otherwise. */
  weight: number;
}

/** `prompt` is '' (or []) where the data has an implicit prompt that shares no text. */
export interface PairRow extends RowBase {
  kind: 'pair';
  prompt: Text;
  chosen: Text;
  rejected: Text;
  margin?: number;
  /** The vote calls the two equal; which stands as chosen says nothing. */
  tie?: true;
}

/** `ranking` lists indices of `responses`, best first; shorter than `responses`: top-m. */
export interface RankingRow extends RowBase {
  kind: 'ranking';
  prompt: Text;
  responses: Text[];
  ranking: number[];
}

export interface UnpairedRow extends RowBase {
  kind: 'unpaired';
  prompt: Text;
  completion: Text;
  label: boolean;
}

/** Supervised text: `completion` is scored after `prompt`; text or a conversation to learn whole has prompt '' or []. */
export interface TextRow extends RowBase {
  kind: 'text';
  prompt: Text;
  completion: Text;
}

export type Row = PairRow | RankingRow | UnpairedRow | TextRow;

/** A row as token ids: one prompt and its completions in row order (pair: chosen, rejected; ranking: responses). */
export interface Group {
  /** The row's index. */
  index: number;
  kind: Row['kind'];
  /**
   * With BOS where the tokenizer has one. Never empty: without BOS, a text row's first token stands here, and any other
   * row whose prompt has no token is refused.
   */
  prompt: Int32Array;
  /** Each with the closing EOS where one belongs. */
  completions: Int32Array[];
  /** Indices of `completions`, best first (pairs: [0, 1]; absent for text and unpaired rows). */
  ranking?: number[];
  label?: boolean;
  margin?: number;
  /** A pair that the vote calls equal. */
  tie?: true;
  annotator?: string;
  group?: string;
  weight: number;
  origin: Origin;
}
