-- Shared by every script that changes a job; the loader puts it in front of each.
--
-- @TRANSITIONS@ is replaced, when the scripts are loaded, by the table in mailjob/lifecycle.py written
-- as " from>to from>to ", so that the ledger itself refuses an illegal move.

local ALLOWED = '@TRANSITIONS@'

-- A consumer that was not seen for this long is forgotten.
local PRESENCE_MS = 24 * 3600 * 1000

-- The timeline keeps its newest entries: about this many bytes.
local TIMELINE_BYTES = 8192

-- Server time in Unix milliseconds: the only clock that scores and leases know.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Counts a move from one status to another; an error for one that the table does not have.
local function move(counts, from, to)
  if not string.find(ALLOWED, ' ' .. from .. '>' .. to .. ' ', 1, true) then
    error('illegal transition from ' .. from .. ' to ' .. to)
  end
  redis.call('HINCRBY', counts, from, -1)
  redis.call('HINCRBY', counts, to, 1)
end

-- The timeline with one more entry: JSON objects, one a line. fields is the inside of the new object.
local function with_event(events, now, fields)
  local line = string.format('{"at":%d,%s}', now, fields)
  if not events or events == '' then
    return line
  end
  local all = events .. '\n' .. line
  if #all > TIMELINE_BYTES then
    local cut = string.find(all, '\n', #all - TIMELINE_BYTES, true)
    all = string.sub(all, cut + 1)
  end
  return all
end
