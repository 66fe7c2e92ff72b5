// What the browser keeps: conversations in IndexedDB, settings in localStorage.

const request = (action) =>
  new Promise((resolve, reject) => {
    action.onsuccess = () => resolve(action.result);
    action.onerror = () => reject(action.error);
  });

class Conversations {
  #database = null;

  /** All of them, the newest first; none can be kept where the browser refuses, as some private windows do. */
  async open() {
    const opening = indexedDB.open("goldfinch", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    this.#database = await request(opening);
    const all = await request(this.#store("readonly").getAll());
    return all.sort((a, b) => b.updatedAt - a.updatedAt);
  }

  async save(conversation) {
    if (this.#database) await request(this.#store("readwrite").put(conversation));
  }

  async remove(id) {
    if (this.#database) await request(this.#store("readwrite").delete(id));
  }

  #store(mode) {
    return this.#database.transaction("conversations", mode).objectStore("conversations");
  }
}

export const conversations = new Conversations();

const SETTINGS = "goldfinch.settings";

/** How tokens are sampled, as the server names it; what is absent is the server's default. */
export const settings = {
  get() {
    try {
      return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    } catch {
      return {};
    }
  },
  set: (values) => localStorage.setItem(SETTINGS, JSON.stringify(values)),
};
