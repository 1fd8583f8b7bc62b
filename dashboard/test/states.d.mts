export const COMPONENT: string;
export const BROKEN_SENTENCE: string;
// biome-ignore lint/suspicious/noExplicitAny: what a gateway says, before it is read
export const STATES: Record<string, (now: number) => any>;
