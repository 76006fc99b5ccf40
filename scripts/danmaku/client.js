// The npm package bilibili-live-ws against this server. TCP, WS and HTTP in the environment are
// HOST:PORT.
const assert = require('node:assert');
const { LiveTCP, LiveWS } = require('bilibili-live-ws');

const [host, port] = process.env.TCP.split(':');
const clients = {
  'tcp, zlib': () => new LiveTCP(1000, { host, port: Number(port), protover: 2, uid: 7 }),
  'tcp, brotli': () => new LiveTCP(1000, { host, port: Number(port), protover: 3, uid: 8 }),
  'websocket, as it is': () => new LiveWS(1000, { address: `ws://${process.env.WS}/sub`, protover: 1, uid: 9 }),
  'websocket, zlib': () => new LiveWS(1000, { address: `ws://${process.env.WS}/sub`, protover: 2, uid: 10 }),
  'websocket, brotli': () => new LiveWS(1000, { address: `ws://${process.env.WS}/sub`, protover: 3, uid: 11, key: 'token' }),
};

const once = (client, event) => new Promise((resolve, reject) => {
  client.once(event, resolve);
  client.once('error', reject);
  client.once('close', () => reject(new Error('closed')));
});

async function push(message) {
  const url = `http://${process.env.HTTP}/goim/push/room?operation=1000&type=live&room=1000`;
  const answer = await (await fetch(url, { method: 'POST', body: JSON.stringify(message) })).json();
  assert.deepStrictEqual(answer, { code: 0, message: '' });
}

async function main() {
  const sessions = [];
  for (const [name, connect] of Object.entries(clients)) {
    const client = connect();
    client.got = [];
    client.on('msg', (data) => client.got.push(data));
    await once(client, 'live');
    await once(client, 'heartbeat');
    sessions.push([name, client]);
  }
  const messages = [];
  for (let nth = 0; nth < 20; nth += 1) {
    messages.push({ cmd: 'DANMU_MSG', nth, info: ['弹幕 '.repeat(nth % 2 ? 400 : 1)] });
  }
  for (const message of messages) await push(message);
  for (const [name, client] of sessions) {
    for (let wait = 0; client.got.length < messages.length && wait < 500; wait += 1) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.deepStrictEqual(client.got, messages, name);
    // The next report has the count of the room.
    for (let wait = 0; (await client.getOnline()) !== sessions.length && wait < 100; wait += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.strictEqual(await client.getOnline(), sessions.length, name);
    console.log(`bilibili-live-ws over ${name}: ${client.got.length} messages in order, ${client.online} online`);
  }
  for (const [, client] of sessions) client.close();
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
