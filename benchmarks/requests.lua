-- What wrk sends: one kind of request, for another user, item or text each time; at the end one line of JSON.
--   wrk ... -s requests.lua URL -- KIND KEY USERS ITEMS
local words = {"red", "green", "blue", "small", "large", "old", "new", "house", "boat", "story", "song", "garden"}
local counter = 0

function setup(thread)
  counter = counter + 1
  thread:set("number", counter)
end

local function user() return "u" .. math.random(0, users - 1) end
local function item() return "i" .. math.random(0, items - 1) end
local function text() return words[math.random(#words)] .. " " .. words[math.random(#words)] .. " " .. words[math.random(#words)] end

local function session()
  local ids = {}
  for i = 1, 20 do ids[i] = '"' .. item() .. '"' end
  return table.concat(ids, ",")
end

local function recommend(body) return wrk.format("POST", "/v1/recommend", nil, "{" .. body .. ',"k":10}') end

local kinds = {
  known = function() return recommend('"user_id":"' .. user() .. '"') end,
  history = function() return recommend('"history":[' .. session() .. ']') end,
  filtered = function() return recommend('"user_id":"' .. user() .. '","filters":{"attributes":{"category":"c3"}}') end,
  query = function() return recommend('"query":"' .. text() .. '"') end,
  steered = function() return recommend('"user_id":"' .. user() .. '","query":"' .. text() .. '"') end,
  similar = function() return wrk.format("GET", "/v1/similar/" .. item()) end,
  events = function()
    sent = sent + 1
    local id = number .. "-" .. stamp .. "-" .. sent
    return wrk.format("POST", "/v1/events", nil,
      '{"events":[{"event_id":"' .. id .. '","user_id":"' .. user() .. '","item_id":"' .. item() .. '"}]}')
  end,
}

function init(args)
  make, users, items, sent, stamp = kinds[args[1]], tonumber(args[3]), tonumber(args[4]), 0, os.time()
  math.randomseed(number * 7919 + stamp)
  wrk.headers["Authorization"] = "Bearer " .. args[2]
  wrk.headers["Content-Type"] = "application/json"
end

function request() return make() end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p95_ms":%.3f,"p99_ms":%.3f,"mean_ms":%.3f,"refused":%d,"broken":%d,"late":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.mean / 1e3, e.status, e.connect + e.read + e.write, e.timeout))
end
