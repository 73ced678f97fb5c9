// Hits as files.

/** A table; cells that a spreadsheet would compute are marked as text. */
export function csv(answer) {
  const members = answer.hits[0]?.votes.map((vote) => vote.member) ?? [];
  const columns = [...new Set(answer.hits.flatMap((hit) => Object.keys(hit.metadata)))];
  const head = ["rank", "image_id", "label", "score", "fused_score", "label_contribution", "near_duplicate"];
  head.push(...members.flatMap((name) => [`${name}_rank`, `${name}_similarity`, `${name}_contribution`]), ...columns);
  const rows = answer.hits.map((hit, number) => [
    number + 1, hit.image_id, hit.label ?? "", hit.score, hit.fused_score, hit.label_contribution, hit.near_duplicate ? 1 : 0,
    ...hit.votes.flatMap((vote) => [vote.rank, vote.similarity, vote.contribution]),
    ...columns.map((name) => hit.metadata[name] ?? ""),
  ]);
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
