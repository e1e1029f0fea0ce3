export { type DataReport, dataNotes, type ReadRowsOptions, readRows } from './dataset.js';
export { similarNames } from './identity.js';
export { knownExtensions, type RawRecord, readRecords } from './readers.js';
export { type ParsedRow, parseRow, type RowOptions, rowFields, rowFormats } from './rows.js';
export { type SplitOptions, splitRows } from './split.js';
export { type GroupsOptions, groupsOf, type TokenReport, tokenNotes } from './tokenize.js';
export type * from './types.js';
export { describe, where } from './where.js';
