-- reconcile: takes jobs that are due and that nobody is working on, and hands them to the caller.
--   queued    its doorbell was lost, or waits in a long queue
--   deferred  the time of its next attempt has come (scheduled likewise)
--   sending   its lease ran out: the consumer died. Before the mark the mail is provably unsent;
--             after it, the policy decides.
-- Each handed-out job stays queued, and is due again after the grace should the caller die as well.
-- KEYS  due, counts
-- ARGV  prefix of the job keys, limit, grace_ms, policy (resend | hold), retention_ms,
--       not_after: server time in ms after which the caller no longer waits ('' where unknown)
-- Returns {server time, ids to claim, ids whose lease ran out, ids with an ambiguous attempt,
--          ids unknown, ms until the next job is due (-1: none)}

local now = now_ms()
if ARGV[6] ~= '' and now > tonumber(ARGV[6]) then
  -- The server was away, and this call waited in a buffer. Living consumers could not renew their
  -- leases meanwhile: let them.
  return {now, {}, {}, {}, {}, 0}
end
local ready, expired, ambiguous, unknown = {}, {}, {}, {}

local function hold(key, id, job)
  local recipients = cjson.decode(job[4])
  for _, recipient in ipairs(recipients) do
    if (recipient.status or 'pending') == 'pending' or recipient.status == 'deferred' then
      recipient.status = 'uncertain'
    end
  end
  move(KEYS[2], 'sending', 'uncertain')
  redis.call('HSET', key, 'status', 'uncertain', 'updated', now, 'phase', '',
    'recipients', cjson.encode(recipients),
    'events', with_event(job[3], now, '"event":"ambiguous","policy":"hold"'))
  redis.call('ZREM', KEYS[1], id)
  redis.call('PEXPIRE', key, ARGV[5])
end

local function queue(key, id, job)
  local status = job[1]
  if status ~= 'queued' then
    move(KEYS[2], status, 'queued')
    redis.call('HSET', key, 'status', 'queued', 'updated', now, 'phase', '')
  end
  if status == 'sending' then
    local event = '"event":"lease_expired"'
    if job[2] == 'data' then
      event = '"event":"ambiguous","policy":"resend"'
    end
    redis.call('HSET', key, 'events', with_event(job[3], now, event))
    expired[#expired + 1] = id
  end
  redis.call('ZADD', KEYS[1], now + ARGV[3], id)
  ready[#ready + 1] = id
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local key = ARGV[1] .. id
  local job = redis.call('HMGET', key, 'status', 'phase', 'events', 'recipients')
  if not job[1] then
    redis.call('ZREM', KEYS[1], id)
    unknown[#unknown + 1] = id
  else
    if job[1] == 'sending' and job[2] == 'data' then
      ambiguous[#ambiguous + 1] = id
    end
    if job[1] == 'sending' and job[2] == 'data' and ARGV[4] == 'hold' then
      hold(key, id, job)
    else
      queue(key, id, job)
    end
  end
end

local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local until_next = -1
if first[2] then
  until_next = math.max(0, first[2] - now)
end
return {now, ready, expired, ambiguous, unknown, until_next}
